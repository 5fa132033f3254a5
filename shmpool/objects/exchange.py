"""`Pool.put` and `Pool.get`: an object in one lease, and out of one buffer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from ..buffer import Buffer, LiveBuffer, SharedBuffer
from ..seat import private
from ..system import frames
from . import layout, templates
from .decoding import check_allow, decode
from .encoding import PicklerClass, encode

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..protocol.handle import Handle

#: Objects below so many bytes are copied out: that takes less time than keeping their buffer open.
COPIED_BELOW: Final = 64 * 1024


def put(
    pool: BasePool, obj: Any, readers: int, ttl: float | None, timeout: float | None, pickler: PicklerClass | None
) -> Handle | list[Handle]:
    """Pickle first: what cannot be pickled leases nothing."""
    nbytes, parts = encode(obj, pickler)
    lease = pool.lease(nbytes, timeout=timeout)
    try:
        lease._write_placed(parts)
        if readers == 1 and readers is not True:
            return lease.publish(ttl=ttl)
        return lease.publish_many(readers, ttl=ttl)
    except BaseException:
        lease.release()
        raise


def get(pool: BasePool, handle: Any, writable: bool, copy: bool | None, allow: Collection[str]) -> Any:
    """Where classes are named: looked at before the ticket is used up."""
    check_allow(allow)
    return take_apart(pool.open(handle), writable, copy, allow)


def take_apart(opened: Buffer, writable: bool, copy: bool | None, allow: Collection[str] | None) -> Any:
    """The object of a buffer that was just opened, which is left to what is made of it."""
    try:
        view = opened.view
        if not writable and (template := templates.find(view)) is not None:
            if copy or (copy is None and len(view) < COPIED_BELOW):
                array = template.array(bytes(view[template.offset :]), 0)
                del view
                opened.release()
                return array
            array = template.array(view, template.offset)
            del view
            opened.release_to_views()
            return array
        # Nothing but its mapping keeps a tensor from being written, and that would be a SIGSEGV.
        is_private = writable or bool(layout.flags_of(view) & layout.HAS_TENSORS)
        if copy or (copy is None and opened.nbytes < COPIED_BELOW):
            view = memoryview(bytearray(view) if is_private else bytes(view))
            opened.release()
        elif is_private:
            assert isinstance(opened, LiveBuffer | SharedBuffer)
            view = opened.view = private.show(private.reserve(opened.nbytes), opened, view)
        obj = decode(view, allow)
        templates.learn(obj)
        del view
        opened.release_to_views()
        return obj
    except BaseException as error:
        view = array = obj = None  # type: ignore[assignment]  # noqa: F841 - somebody may keep the exception
        frames.clear(error)
        opened._release_after(type(error))
        raise
