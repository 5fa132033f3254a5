"""What is put becomes bytes for the queue's own memory, or a lease.

One C pickler for each thread, which knows the reducers of `multiprocessing` (made anew for each object
it would cost seven times as much). What has large buffers is laid out in a lease by `objects`, without a
copy on the way; what is large without them is written as the pickler has made it.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..objects.encoding import encode
from ..objects.exchange import take_apart
from ..protocol.handle import Handle
from ..protocol.queues import Kind
from ..system.importing import door, explained

if TYPE_CHECKING:
    from ..buffer import Buffer
    from ..live_lease import LiveLease
    from ..pool import BasePool

#: What is smaller is copied out: to look after a view that lives on costs more.
COPIED_BELOW: Final = 256 * 1024
#: Types that have no large buffers of their own.
_PLAIN: Final = frozenset({int, float, complex, bool, str, bytes, type(None), tuple, list, dict, set, frozenset})


#: Of these those that need nothing of the pickler's.
FLAT: Final = frozenset({int, float, bool, str, type(None)})


class Item(NamedTuple):
    """What is to be put: pickled bytes for the queue's own memory, or a written lease."""

    kind: int
    inline: bytes | None
    lease: LiveLease | None


class _Reducers(dict[type, Any]):
    """The reducers of `multiprocessing`, where it is used at all, and of everybody, as they are now."""

    def __missing__(self, kind: type) -> Any:
        reduction = sys.modules.get("multiprocessing.reduction")
        if reduction is not None and kind.__module__ != "numpy":  # whose arrays `objects` lays out
            found = reduction.ForkingPickler._extra_reducers.get(kind)
            if found is not None:
                return found
        return copyreg.dispatch_table[kind]


_REDUCERS: Final = _Reducers()


class ReducingPickler(pickle.Pickler):
    """A pickler with the reducers of `multiprocessing`."""

    dispatch_table = _REDUCERS


class _Pieces(list[Any]):
    """The pickler's file."""

    __slots__ = ()

    write = list.append


class SmallPickler:
    """A thread's."""

    __slots__ = ("_clear", "_dump", "_is_busy", "_large", "_most", "_pieces")

    def __init__(self) -> None:
        self._pieces = _Pieces()
        pickler = ReducingPickler(self._pieces, 5, buffer_callback=self._is_in_band)
        self._dump, self._clear = pickler.dump, pickler.clear_memo
        self._is_busy = self._large = False
        self._most = 0

    def _is_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes <= self._most:
            return True
        self._large = True
        return False

    def dumps(self, obj: Any, most: int) -> bytes | list[Any] | None:
        """The pickle in one piece, if it has no more than *most* bytes; else its pieces; None of what has
        buffers that are larger. Raises what pickling raises."""
        if self._is_busy:  # a reducer puts, too
            return SmallPickler().dumps(obj, most)
        if type(obj) not in _PLAIN and getattr(obj, "nbytes", 0) > most:
            return None
        pieces = self._pieces
        self._most = most
        try:
            self._is_busy = True
            self._dump(obj)
            if self._large:
                return None
            if len(pieces) == 1 and len(pieces[0]) <= most:
                return pieces.pop()  # type: ignore[no-any-return]
            return list(pieces)
        finally:
            self._clear()
            pieces.clear()
            self._is_busy = self._large = False


class _Mine(threading.local):
    """Each thread's."""

    def __init__(self) -> None:
        self.dumps = SmallPickler().dumps


mine: Final = _Mine()


def in_lease(pool: BasePool, obj: Any, pieces: list[Any] | None, timeout: float | None) -> Item:
    """Write what is large into a lease: its pickle's *pieces*, if there are any. Raises what pickling raises,
    and like `Pool.lease`; nothing is leased then."""
    if pieces is None:
        encoded = encode(obj) if getattr(type(obj), "__module__", "") == "numpy" else encode(obj, ReducingPickler)
        return Item(Kind.HANDLE, None, _written(pool, encoded.nbytes, encoded.parts, timeout))
    parts: list[tuple[int, memoryview]] = []
    at = 0
    for piece in pieces:
        parts.append((at, memoryview(piece)))
        at += len(piece)
    return Item(Kind.PICKLED, None, _written(pool, at, parts, timeout))


def _written(pool: BasePool, nbytes: int, parts: list[tuple[int, memoryview]], timeout: float | None) -> LiveLease:
    lease: Any = pool.lease(nbytes, timeout=timeout)
    try:
        lease._write_placed(parts)
    except BaseException:
        lease.release()
        raise
    return lease  # type: ignore[no-any-return]


def restore(kind: int, buffer: Buffer) -> Any:
    """The object of an opened buffer. Raises what unpickling raises."""
    if kind == Kind.HANDLE:
        return take_apart(buffer, False, True if buffer.nbytes < COPIED_BELOW else None, None)
    with buffer:
        return pickle.loads(buffer.view)


def restore_copy(kind: int, content: bytes) -> Any:
    """The object of a lease's bytes, which are nobody else's."""
    with door, explained:
        from ..objects.decoding import decode

    return decode(memoryview(content), None) if kind == Kind.HANDLE else pickle.loads(content)


def restored(kind: int, content: bytes | Buffer) -> Any:
    """The object of what a queue gave. Raises what unpickling raises."""
    if not isinstance(content, bytes):
        return restore(kind, content)
    if kind == Kind.BYTES:
        return content
    if kind == Kind.TOKEN:
        return Handle(content)
    return pickle.loads(content) if kind == Kind.INLINE else restore_copy(kind, content)
