"""The verbs of objects: `put`, `get`. What they need is imported when they are first used."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, overload

from ..pool import BasePool

if TYPE_CHECKING:
    from ..protocol.handle import Handle
    from .encoding import PicklerClass


class ObjectVerbs(BasePool):
    """A pool of Python objects."""

    @overload
    def put(
        self,
        obj: Any,
        *,
        readers: Literal[1] = 1,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Handle: ...
    @overload
    def put(
        self, obj: Any, *, readers: int, timeout: float | None = None, pickler: PicklerClass | None = None
    ) -> list[Handle]: ...
    def put(
        self, obj: Any, *, readers: int = 1, timeout: float | None = None, pickler: PicklerClass | None = None
    ) -> Handle | list[Handle]:
        """Publish a Python object, in one lease, its arrays, tables and large bytes without a copy
        on the way there; `get` makes it again. For more than one of *readers* a list of handles, one
        each. *pickler* is a class like `cloudpickle.Pickler` for what plain pickle refuses.

        The object must not change meanwhile. Raises what pickling raises, and like `lease`; nothing
        is leased then.
        """
        from .exchange import put

        handles = put(self, obj, readers, timeout, pickler)
        return handles[0] if readers == 1 else handles

    def get(
        self,
        handle: Handle | bytes | bytearray | memoryview,
        *,
        writable: bool = False,
        copy: bool | None = None,
        allow: Collection[str] | None = None,
    ) -> Any:
        """The object that `put` published. Its arrays lie in the pool's memory, which each of them
        keeps until it dies; they are read-only, with *writable* private to this process. *copy* says
        whether they are copied out at once; None: what is small is. Tensors are always private.

        Unpickling runs code that the writer chose: trust who may write to the pool. *allow*, a set of
        ``"module.qualname"``, refuses all other classes and functions but plain data (of the standard
        library and numpy) with `FormatError`; it is no sandbox. Raises like `open`, `FormatError` for
        what `put` did not make, and what unpickling raises; the handle is used up then.
        """
        from .exchange import get

        return get(self, handle, writable, copy, allow)
