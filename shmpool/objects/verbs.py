"""The verbs of objects: `put`, `get`, `share` and what goes with them. What they need is imported when
they are first used."""

from __future__ import annotations

from ..pool import BasePool
from ..system import frames
from ..system.importing import door, explained

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any, Literal, overload

    from numpy.typing import DTypeLike

    from ..buffer import SharedBuffer
    from ..live_lease import LiveLease
    from ..protocol.handle import Handle
    from ..shared import Shared
    from .arrays import ArrayLease
    from .encoding import PicklerClass

#: The module, from its first use on: an import statement that finds it there takes as long as laying an array out.
_exchange: Any = None


def _import_exchange() -> Any:
    global _exchange
    with door, explained:
        from . import exchange

    _exchange = exchange
    return exchange


class ObjectVerbs(BasePool):
    """A pool of Python objects."""

    if TYPE_CHECKING:

        @overload
        def put(
            self,
            obj: Any,
            *,
            readers: Literal[1] = 1,
            ttl: float | None = None,
            timeout: float | None = None,
            pickler: PicklerClass | None = None,
        ) -> Handle: ...
        @overload
        def put(
            self,
            obj: Any,
            *,
            readers: int,
            ttl: float | None = None,
            timeout: float | None = None,
            pickler: PicklerClass | None = None,
        ) -> list[Handle]: ...

    def put(
        self,
        obj: Any,
        *,
        readers: int = 1,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Handle | list[Handle]:
        """Publish a Python object, in one lease, its arrays, tables and large bytes without a copy
        on the way there; `get` makes it again. For more than one of *readers* a list of handles, one
        each. What nobody has opened within *ttl* seconds is closed. *pickler* is a class like
        `cloudpickle.Pickler` for what plain pickle refuses.

        The object must not change meanwhile. Raises what pickling raises, and like `Pool.lease`; nothing
        is leased then.
        """
        try:
            put = (_exchange or _import_exchange()).put
            handles: Handle | list[Handle] = put(self, obj, readers, ttl, timeout, pickler)
            return handles
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

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
        library and numpy) with `FormatError`; it is no sandbox. Raises like `Pool.open`, `FormatError` for
        what `put` did not make, and what unpickling raises; the handle is used up then.
        """
        try:
            exchange = _exchange or _import_exchange()
            if allow is not None:
                return exchange.get(self, handle, writable, copy, allow)
            return exchange.take_apart(self.open(handle), writable, copy, None)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def empty(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = "float64",
        *,
        order: Literal["C", "F"] = "C",
        timeout: float | None = None,
    ) -> ArrayLease:
        """A numpy array born in shared memory: fill its `array`, then `publish` it, and `get` has the
        same array without a copy on either side. Its content is undefined until written. Best as a
        context manager: leaving the block unpublished gives the memory back. Raises like `Pool.lease`,
        `TypeError` for a *dtype* of objects, `ValueError` for a shape or dtype that no array has."""
        with door, explained:
            from .arrays import empty

        try:
            return empty(self, shape, dtype, order, timeout)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    # --- shared publications ------------------------------------------------------------------------

    def share(
        self,
        obj: Any,
        name: str | None = None,
        *,
        keep: bool | Literal["cache"] = False,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Shared:
        """Publish an object for any number of processes, which open it any number of times: send them
        the `Shared`, or have them `find` its *name* (1 to 96 bytes of UTF-8, one for each pool).

        It lives while its maker or anybody holds it; with *keep* and a name until that is dropped; with
        ``keep="cache"`` until memory is needed, least recently held first. After *ttl* seconds it is
        dropped. Who holds it keeps it in any case. Raises what pickling raises, like `Pool.lease`, and
        `NameTaken`; nothing is shared then. Where another exception comes in the middle (Ctrl-C, a lost broker), what
        is to be kept may have its name already: `find` or `drop` it.
        """
        with door, explained:
            from .sharing import share

        try:
            return share(self, obj, name, keep, ttl, timeout, pickler)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def find(self, name: str, timeout: float | None = 0) -> Shared:
        """The shared publication of a name, held until it is opened or released. *timeout* in seconds is
        for a name that is still to come: 0 looks once, None waits for the configured ``lease_timeout``.
        Raises `NotFound`."""
        with door, explained:
            from .sharing import find

        try:
            return find(self, name, timeout)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def get_or_share(
        self,
        name: str,
        make: Callable[[], Any],
        *,
        timeout: float | None = None,
        keep: bool | Literal["cache"] = False,
        ttl: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Shared:
        """The shared publication of a name; where there is none, one process at a time calls *make* and
        shares what it returns, and the others wait for it, *timeout* seconds at most. A maker that dies or
        raises hands the turn to the next. Raises `NotFound` when nothing came in time, and what *make*
        raises."""
        with door, explained:
            from .sharing import get_or_share

        try:
            return get_or_share(self, name, make, timeout, keep, ttl, pickler)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def names(self) -> list[str]:
        """The names of all shared publications of this pool, sorted. A round trip to the broker."""
        with door, explained:
            from ..stats import query_names

        self._live_session()
        return [str(line["name"]) for line in query_names(self.address, timeout=self._timeout)["names"]]

    def drop(self, name: str) -> None:
        """Free a name. What had it lives on while anybody holds it. For its maker's user and root:
        others may find and read what is shared in their pool, not drop it (`ShmpoolError`). Raises
        `NotFound`."""
        with door, explained:
            from .sharing import drop

        drop(self, name)

    def _get_shared(
        self, buffer: SharedBuffer, writable: bool, copy: bool | None, allow: Collection[str] | None
    ) -> Any:
        """The object of a shared publication that was just opened."""
        try:
            return (_exchange or _import_exchange()).take_apart(buffer, writable, copy, allow)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def _share_lease(self, lease: LiveLease, name: str | None, keep: Any, ttl: float | None) -> Shared:
        """What `Lease.publish_shared` does."""
        with door, explained:
            from .sharing import publish_shared

        try:
            return publish_shared(self, lease, name, keep, ttl)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise
