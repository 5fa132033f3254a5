"""`shmpool.install`: arrays that multiprocessing pickles go through a pool, and a handle through the pipe.

`multiprocessing.Pool`, its queues and pipes and `ProcessPoolExecutor` all pickle by `ForkingPickler`. It is told
here how to reduce what owns large memory: numpy's arrays, arrow's buffers. What is made of these (data frames,
tables, lists of arrays) passes with them. A type is registered when a process has it and pickles; nothing is
imported for that. bytes and bytearray cannot be registered: the C pickler asks nobody about them.

Where the pool has no room at once, or there is no broker, the array is pickled as it was before: counted by
reason, told once. A pickle that ends in an error discards what it had put into the pool. One that is never read
(its reader died, its pipe was closed) is given back when its ttl has passed; who reads one a second time, or after
that, gets `HandleUsed`.

Not covered: torch's tensors, which torch shares by itself, unless `install` is asked to; and what is pickled by
another pickler (cloudpickle, loky).
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import warnings
from collections import Counter
from multiprocessing import context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .. import log
from ..connecting import connect
from ..errors import BrokerUnavailable, HandleUsed, PoolClosed, ShmpoolError, StaleHandle
from ..link.waiting import check_ttl
from ..pools import Pool, of_address
from ..protocol.handle import Handle
from ..protocol.names import SHM_DIR
from ..protocol.sizing import MIB, format_bytes
from ..system.memory import shm_space
from ..system.outside import own, own_or_called

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds that an array may wait in a pipe: longer than tasks do, since memory that is lost costs speed only.
TTL: Final = 3600.0
#: What containers are given if nobody says otherwise: too little to be worth much.
_SMALL_SHM: Final = 64 * MIB
#: Seconds that a process which has no connection yet tries to get one, and until it tries again.
_CONNECT: Final = 1.0
_ASKS_AGAIN: Final = 5.0
#: Smaller arrays are copied out at once: that takes less time than a map of their own.
_COPIED_BELOW: Final = 256 * 1024


class Terms(NamedTuple):
    """What travels with each handle: a process that knows nothing of it yet does likewise."""

    address: str
    min_nbytes: int
    ttl: float
    tensors: bool


class Installation:
    """What `shmpool.install` returns: the pool, and what went through it from this process.

    *passed* counts objects and *passed_bytes* their bytes; *fallbacks* says by reason how many were pickled as
    before: "full", "broker", "error". Reading them is thread-safe.
    """

    def __init__(self, terms: Terms, pool: Pool | None, *, is_own: bool) -> None:
        self.terms = terms
        self.passed = 0
        self.passed_bytes = 0
        self.fallbacks: Counter[str] = Counter()
        self._pool = pool
        self._is_own = is_own
        #: Where there was no broker it is not asked for before then, in monotonic seconds.
        self._asks_again = 0.0

    @property
    def pool(self) -> Pool:
        """The pool of this process; in one that was just told of it, it connects."""
        if self._pool is None or self._pool.closed:
            self._pool = of_address(self.terms.address)
        return self._pool

    def close(self) -> None:
        """Close the pool, if it is our own."""
        if self._is_own and self._pool is not None:
            self._pool.close()

    def put(self, obj: Any, nbytes: int) -> Handle | None:
        """Publish an object, if there is room at once; None, counted, if not."""
        if self._asks_again and time.monotonic() < self._asks_again:
            self.fallbacks["broker"] += 1
            return None
        try:
            pool = self.pool
            if not pool._live_session(_CONNECT).link.await_connection(0):  # who is to read it could not connect
                raise BrokerUnavailable(f"the broker at {pool.address} is away")
            handle = pool.put(obj, ttl=self.terms.ttl, timeout=0)
            self._asks_again = 0.0
        except own_or_called(BrokerUnavailable, PoolClosed) as error:
            self._asks_again = time.monotonic() + _ASKS_AGAIN
            self._fall_back("broker", error)
            return None
        except own_or_called(ShmpoolError, MemoryError) as error:
            self._fall_back("full", error)
            return None
        except own_or_called(Exception) as error:  # whatever it is: pickled as before it may go well, or says it better
            self._fall_back("error", error)
            return None
        self.passed += 1
        self.passed_bytes += nbytes
        pending = _pickling.handles
        if pending:
            pending.append(handle)
        elif pending is not None:
            _pickling.handles = [handle]
        return handle

    def _fall_back(self, reason: str, error: Exception) -> None:
        self.fallbacks[reason] += 1
        if self.fallbacks[reason] == 1:
            # Its text: a handler may keep the record, and with an error the frames of who pickles.
            log.warning("objects are pickled as without shmpool.install(), for now: %s", str(error))

    def discard(self, handles: Iterable[Handle]) -> None:
        """Take back what will not be sent."""
        for handle in handles:
            try:
                self.pool.discard(handle)
            except own(ShmpoolError):
                pass

    def __repr__(self) -> str:
        return (
            f"<shmpool.install at {self.terms.address}: {self.passed} objects passed,"
            f" {self.fallbacks.total()} pickled as before>"
        )


#: The installation of this process; a forked child has its parent's.
_present: Installation | None = None
#: The process that has called `uninstall` last: what arrives there installs nothing. A child may be told anew.
_uninstalled_in = 0


class _Pickling(threading.local):
    """What the pickle that this thread is just making has put into the pool; None between pickles."""

    handles: list[Handle] | tuple[()] | None = None


_pickling: Final = _Pickling()


def install(
    min_nbytes: int = 65536, *, pool: Pool | None = None, ttl: float = TTL, tensors: bool = False
) -> Installation:
    """Have multiprocessing's pickles pass arrays of *min_nbytes* bytes and more through a pool, in this process
    and in all that it starts: `multiprocessing.Pool`, `ProcessPoolExecutor`, queues and pipes, unchanged.

    *pool* is the pool; None: that of the broker at the default address, and where there is none, of a private one
    for this process tree. Arrays arrive as they do without: writable, and nobody else's. What nobody has read
    within *ttl* seconds (up to a day, or infinity) is given back, and is an error for who reads it then; so is
    reading the same pickle twice. *tensors* says whether torch's tensors go the same way, as copies; without it
    torch shares them by its own means.

    Warns where /dev/shm has 64 MiB or less. Raises `BrokerUnavailable` where no broker can be had, TypeError and
    ValueError for arguments; nothing is installed then. A second call takes the place of the first. To be called
    from one thread; what it installs is thread-safe, and works in forked children.
    """
    if isinstance(min_nbytes, bool) or not isinstance(min_nbytes, int):
        raise TypeError(f"min_nbytes is a number of bytes, not {min_nbytes!r}")
    if min_nbytes < 0:
        raise ValueError(f"min_nbytes is a number of bytes, not {min_nbytes}")
    ttl = check_ttl(ttl)
    if pool is not None and not isinstance(pool, Pool):
        raise TypeError(f"pool is a shmpool.Pool or None, not {pool!r}")
    if pool is not None and pool.closed:
        raise PoolClosed("the pool is closed; connect() makes a new one")
    _look_at_host()
    own = None if pool is not None else connect(autostart=True)
    chosen = pool or own
    assert chosen is not None
    uninstall()
    made = Installation(Terms(chosen.address, min_nbytes, ttl, bool(tensors)), chosen, is_own=own is not None)
    _take_effect(made)
    return made


def uninstall() -> None:
    """Undo `install` in this process: from here on multiprocessing pickles as before, whatever arrives. What is on its
    way still does, and so do the results of workers that know of the installation: they go on with it. In a worker
    it keeps what arrives from installing anything."""
    global _present, _uninstalled_in
    installation, _present = _present, None
    _uninstalled_in = os.getpid()
    if installation is None:
        return
    for cls in _registered:
        _reducers().pop(cls, None)
    _registered.clear()
    _to_register.clear()
    if vars(ForkingPickler).get("dump") is _dump:
        del ForkingPickler.dump
    installation.close()


def installed_types() -> frozenset[type]:
    """The types whose objects take this way just now: for who pickles like multiprocessing, but puts them into a
    pool by himself."""
    return frozenset(_registered)


def _look_at_host() -> None:
    """Say so where a pool can hold next to nothing."""
    try:
        space = shm_space()
    except own(OSError):
        return  # the broker says it better
    if 0 < space.total <= _SMALL_SHM:
        warnings.warn(
            f"{SHM_DIR} has {format_bytes(space.total)}, which few arrays fill: what does not fit is pickled as"
            " without shmpool.install(). Give it more, in containers by --shm-size=1g",
            RuntimeWarning,
            stacklevel=3,
        )


# --- what is registered -----------------------------------------------------------------------------------

#: Types that are registered, and those whose module was not loaded yet, by the module.
_registered: set[type] = set()
_to_register: dict[str, Callable[[Any], dict[type, Callable[[Any], Any]]]] = {}


def _reducers() -> dict[type, Any]:
    """multiprocessing's own table, which it has no public way to take anything out of."""
    table: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    return table


def _take_effect(installation: Installation) -> None:
    global _present, _uninstalled_in
    _present, _uninstalled_in = installation, 0
    _to_register["numpy"] = lambda np: {np.ndarray: _reduce_array}
    _to_register["pyarrow"] = lambda pa: {pa.Buffer: _reduce_arrow, pa.ResizableBuffer: _reduce_arrow}
    if installation.terms.tensors:
        _to_register["torch"] = lambda torch: {torch.Tensor: _reduce_tensor}
    for cls in (context.Process, context.SpawnProcess, context.ForkServerProcess):
        _register(cls, _reduce_process)
    _register_loaded()
    ForkingPickler.dump = _dump  # type: ignore[method-assign, assignment]


def _register(cls: type, reducer: Callable[[Any], Any]) -> None:
    ForkingPickler.register(cls, reducer)
    _registered.add(cls)


def _register_loaded() -> dict[type, Any]:
    """Register the types of the modules that have been imported since; returns what is new."""
    global _looked_at
    new: dict[type, Any] = {}
    seen, is_whole = len(sys.modules), True
    for name in tuple(_to_register):
        module = sys.modules.get(name)
        if module is None:
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):  # it has not all of them yet
            is_whole = False
            continue
        types = _to_register.pop(name, None)
        new |= types(module) if types else {}
    for cls, reducer in new.items():
        _register(cls, reducer)
    _looked_at = seen if is_whole else 0
    return new


#: So many modules there were when each that is loaded had been looked at.
_looked_at = 0


def _dump(pickler: ForkingPickler, obj: Any, dump: Any = pickle.Pickler.dump, modules: Any = sys.modules) -> None:
    """`ForkingPickler.dump`: one that fails takes back what it had put into the pool. What is pickled is mostly small,
    so this takes little."""
    if len(modules) != _looked_at and _to_register:
        pickler.dispatch_table.update(_register_loaded())  # a copy that it made before  # type: ignore[attr-defined]
    outer, _pickling.handles = _pickling.handles, ()
    try:
        dump(pickler, obj)
    except BaseException:
        if _pickling.handles and (installation := _present) is not None:
            installation.discard(_pickling.handles)
        raise
    finally:
        _pickling.handles = outer


# --- there -----------------------------------------------------------------------------------------------


def _reduce_array(array: Any) -> Any:
    installation, dtype = _present, array.dtype
    if (
        installation is None
        or array.nbytes < installation.terms.min_nbytes
        or dtype.hasobject  # they may need multiprocessing's pickler themselves
        or 0 in array.strides
        or (handle := installation.put(array, array.nbytes)) is None
    ):
        return array.__reduce__()
    return _array_here, (*installation.terms, bytes(handle))


def _reduce_arrow(buffer: Any) -> Any:
    installation = _present
    if (
        installation is None
        or buffer.size < installation.terms.min_nbytes
        or not buffer.is_cpu
        or (handle := installation.put(buffer, buffer.size)) is None
    ):
        return buffer.__reduce_ex__(4)
    return _data_here, (*installation.terms, bytes(handle))


def _reduce_tensor(tensor: Any) -> Any:
    installation = _present
    nbytes = tensor.nbytes if tensor.device.type == "cpu" and tensor.layout is sys.modules["torch"].strided else 0
    if (
        installation is None
        or nbytes < installation.terms.min_nbytes
        or not tensor.is_leaf
        or (handle := installation.put(tensor, nbytes)) is None
    ):
        return tensor.__reduce_ex__(2)
    return _data_here, (*installation.terms, bytes(handle))


def _reduce_process(process: BaseProcess) -> Any:
    """A process that is spawned has the installation before it has its work."""
    make, arguments, *rest = cast(tuple[Any, ...], process.__reduce_ex__(2))
    installation = _present
    if installation is None:
        return make, arguments, *rest
    return _process_here, (installation.terms, make, arguments), *rest


# --- and here --------------------------------------------------------------------------------------------


def _arrived(terms: Terms) -> None:
    """A process that receives something is installed by it, unless it has said otherwise."""
    if _present is None and _uninstalled_in != os.getpid():
        _take_effect(Installation(terms, None, is_own=False))


def _pool_of(terms: Terms) -> Pool:
    if _present is None:
        _arrived(terms)
    installation = _present
    if installation is not None and installation.terms.address == terms.address:
        return installation.pool
    return of_address(terms.address)


def _array_here(address: str, min_nbytes: int, ttl: float, tensors: bool, handle: bytes) -> Any:
    """Unpickle an array: private memory, as if it had come through the pipe."""
    copy = True if Handle.from_bytes(handle).nbytes < _COPIED_BELOW else None
    return _received(Terms(address, min_nbytes, ttl, tensors), handle, writable=True, copy=copy)


def _data_here(address: str, min_nbytes: int, ttl: float, tensors: bool, handle: bytes) -> Any:
    """Unpickle what is not written to, or sees to that itself."""
    return _received(Terms(address, min_nbytes, ttl, tensors), handle, writable=False, copy=None)


def _received(terms: Terms, handle: bytes, *, writable: bool, copy: bool | None) -> Any:
    try:
        return _pool_of(terms).get(handle, writable=writable, copy=copy)
    except own_or_called(HandleUsed, StaleHandle) as error:
        raise type(error)(
            f"{error}. What shmpool.install() passes can be unpickled once, and within its ttl ({terms.ttl:g} s)"
        ) from None


def _process_here(terms: Terms, make: Any, arguments: Any) -> Any:
    """Unpickle the process that this one is to be."""
    _arrived(terms)
    return make(*arguments)
