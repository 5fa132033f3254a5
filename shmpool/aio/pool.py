"""The pool of an event loop, and `connect`. The verbs are those of `shmpool.Pool`; what they do is there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .. import connecting
from ..buffer import Buffer
from ..lease import Lease
from ..link.waiting import await_the_end, check_timeout
from ..objects import sharing
from ..objects.encoding import Encoded, PicklerClass, encode
from ..pools import Pool as SyncPool
from ..protocol.handle import Handle
from ..protocol.sizing import Strategy
from ..queues import Queue as SyncQueue
from ..seat.session import Session
from ..shared import Shared
from ..system.outside import own
from ..uncopied import Uncopied
from .acquiring import Acquiring
from .attempts import Attempts
from .queue import Queue

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ..objects.arrays import ArrayLease
    from ..protocol.sizing import StrategyLike
    from ..stats import Stats

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    timeout: float = 5.0,
    autostart: bool = False,
    strict: bool = False,
) -> Acquiring[Pool]:
    """Connect to a broker, for the loop that runs: ``async with connect() as pool`` or ``await connect()``.
    Arguments and errors are those of `shmpool.connect`; a thread of its own does it, and where its task is
    cancelled what it has made is closed."""

    async def acquire() -> Pool:
        def act() -> SyncPool:
            return connecting.connect(address, timeout=timeout, autostart=autostart, strict=strict)

        return Pool(await _in_thread(act, SyncPool.close))

    return Acquiring(acquire, Pool.close)


class Pool(Uncopied):
    """A pool of one event loop. Made by `connect`; `close` it, or ``async with`` it. Its verbs raise RuntimeError in
    another loop. Copying is done in the loop's thread; what is very large is better put in by
    `asyncio.to_thread` with `sync`, the same pool for threads."""

    _why = "it belongs to its loop: send its `sync`, which is a pool for threads, or connect there"

    def __init__(self, sync: SyncPool) -> None:
        #: The same pool, for threads.
        self.sync = sync
        self._loop = asyncio.get_running_loop()

    # --- leasing and opening ----------------------------------------------------------------------------

    def lease(
        self, nbytes: int, *, strategy: StrategyLike = Strategy.ADAPTIVE, timeout: float | None = None
    ) -> Acquiring[Lease]:
        """Lease a buffer: ``async with pool.lease(n) as lease`` gives it back at the end unless it was published.
        Only a lease that nothing is there for suspends. *timeout* and errors are those of `shmpool.Pool.lease`;
        `asyncio.timeout` works as well."""
        return Acquiring(
            lambda: self._make(lambda left: self.sync.lease(nbytes, strategy=strategy, timeout=left), timeout),
            lambda lease: lease.release(),
        )

    def open(self, handle: Handle | Bytes | Shared, *, writable: bool = False) -> Acquiring[Buffer]:
        """Open a published buffer, or a shared one, which the broker is asked for the first time. Errors are those of
        `shmpool.Pool.open`."""

        async def acquire() -> Buffer:
            if isinstance(handle, Shared):
                return await self._make(lambda left: handle.open(writable=writable), None)
            await self._ready()
            return self.sync.open(handle, writable=writable)

        return Acquiring(acquire, lambda buffer: buffer.release())

    def discard(self, handle: Handle | Bytes) -> None:
        """Close the ticket of a handle that will not be delivered. Waits for nobody."""
        self._check_loop()
        self.sync.discard(handle)

    def reclaim(self) -> int:
        """Close the tickets of what this process has published and nobody has opened."""
        self._check_loop()
        return self.sync.reclaim()

    def empty(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = "float64",
        *,
        order: Literal["C", "F"] = "C",
        timeout: float | None = None,
    ) -> Acquiring[ArrayLease]:
        """An array born in shared memory; ``async with`` gives the memory back unless it was published."""
        return Acquiring(
            lambda: self._make(lambda left: self.sync.empty(shape, dtype, order=order, timeout=left), timeout),
            lambda array: array.release(),
        )

    # --- objects ----------------------------------------------------------------------------------------

    @overload
    async def put(
        self,
        obj: Any,
        *,
        readers: Literal[1] = 1,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Handle: ...
    @overload
    async def put(
        self,
        obj: Any,
        *,
        readers: int,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> list[Handle]: ...
    async def put(
        self,
        obj: Any,
        *,
        readers: int = 1,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Handle | list[Handle]:
        """Publish a Python object, as `shmpool.Pool.put` does. It must not change while this waits for room."""
        self._check_loop()
        encoded = encode(obj, pickler)
        with await self.lease(encoded.nbytes, timeout=timeout) as lease:
            lease._write_placed(encoded.parts)
            handles = lease.publish_many(readers, ttl=ttl)
        return handles[0] if readers == 1 else handles

    async def get(
        self,
        handle: Handle | Bytes | Shared,
        *,
        writable: bool = False,
        copy: bool | None = None,
        allow: Collection[str] | None = None,
    ) -> Any:
        """The object of a handle, or of a shared publication, as `shmpool.Pool.get` gives it."""
        if isinstance(handle, Shared):
            return await self._make(lambda left: handle.get(writable=writable, copy=copy, allow=allow), None)
        await self._ready()
        return self.sync.get(handle, writable=writable, copy=copy, allow=allow)

    # --- shared publications ----------------------------------------------------------------------------

    async def share(
        self,
        obj: Any,
        name: str | None = None,
        *,
        keep: bool | Literal["cache"] = False,
        ttl: float | None = None,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Shared:
        """Publish an object for any number of readers, as `shmpool.Pool.share` does."""
        self._check_loop()
        sharing.check(self.sync, name, keep, ttl)
        encoded = encode(obj, pickler)
        session = await self._ready()
        number = await self._make(lambda left: sharing.claim(session, name, timeout=left), timeout)
        try:
            return await self._share(encoded, name, keep, ttl, timeout, number)
        except BaseException:
            if number:
                session.let_go(number)
            raise

    async def _share(
        self,
        encoded: Encoded,
        name: str | None,
        keep: sharing.Keep,
        ttl: float | None,
        timeout: float | None,
        turn: int,
    ) -> Shared:
        session = await self._ready()
        await self._make(lambda left: sharing.await_broker(session, left), timeout)
        with await self.lease(encoded.nbytes, timeout=timeout) as lease:
            lease._write_placed(encoded.parts)
            session = self.sync._live_session()
            await self._make(lambda left: sharing.await_broker(session, left), timeout)
            message = sharing.share_message(session, lease, ttl, turn)  # type: ignore[arg-type]
            try:
                announced = sharing.announce(message, lease, self.sync, name, keep, ttl)  # type: ignore[arg-type]
                request = await self._make(lambda left: session.holds.ask(message, left, what="share"), timeout)
                return sharing.made(self.sync, announced, request)
            except BaseException:
                session.holds.discard_sharing(message)
                raise

    async def find(self, name: str, timeout: float | None = 0) -> Shared:
        """The shared publication of a name, as `shmpool.Pool.find` finds it; waiting for it suspends."""
        return await self._make(lambda left: self.sync.find(name, left), timeout)

    async def get_or_share(
        self,
        name: str,
        make: Callable[[], Any] | Callable[[], Awaitable[Any]],
        *,
        timeout: float | None = None,
        keep: bool | Literal["cache"] = False,
        ttl: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Shared:
        """The shared publication of a name; where there is none, one task of all processes makes it, by *make*, which
        may be a coroutine function. As `shmpool.Pool.get_or_share`."""
        found = await self._make(lambda left: sharing.find_or_turn(self.sync, name, keep, ttl, left), timeout)
        if isinstance(found, Shared):
            return found
        session, number = found
        try:
            made = make()
            obj = await made if isawaitable(made) else made
            return await self._share(encode(obj, pickler), name, keep, ttl, timeout, number)
        except BaseException:
            session.let_go(number)  # the next in line makes it
            raise

    async def drop(self, name: str) -> None:
        """Free a name, as `shmpool.Pool.drop`; a thread of its own does it, which asks the broker more than once."""
        self._check_loop()
        await _in_thread(lambda: self.sync.drop(name))

    def queue(self, name: str | None = None, maxsize: int = 0, **options: Any) -> Acquiring[Queue]:
        """A queue between processes, by its name if it has one; *options* are those of `shmpool.Queue`. A thread of its
        own makes it. ``async with`` closes it at the end."""

        async def acquire() -> Queue:
            self._check_loop()
            return Queue(
                await _in_thread(lambda: SyncQueue(maxsize, pool=self.sync, name=name, **options), SyncQueue.close)
            )

        return Acquiring(acquire, Queue.close)

    # --- the rest -----------------------------------------------------------------------------------------

    async def names(self) -> list[str]:
        """The names of all shared publications."""
        self._check_loop()
        return await _in_thread(self.sync.names)

    async def stats(self) -> Stats:
        """The broker's figures, asked by a thread of its own."""
        self._check_loop()
        return await _in_thread(self.sync.stats)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.sync.closed

    @property
    def address(self) -> str:
        """Its broker's socket."""
        return self.sync.address

    def close(self) -> None:
        """Give everything back; what waits raises `PoolClosed`. Waits for nobody."""
        self.sync.close()

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<shmpool.aio.Pool of {self.sync!r}>"

    # --- waiting --------------------------------------------------------------------------------------------

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop: connect in each loop")

    async def _ready(self) -> Session:
        """The session; a thread of its own connects anew where it must (the broker came back with another pool)."""
        self._check_loop()
        session = self.sync._session
        if session is None or session.is_over:
            session = await _in_thread(self.sync._live_session)
        return session

    async def _make(self, act: Callable[[float], T], timeout: float | None) -> T:
        """What a verb of the synchronous pool returns, which is given the seconds that are left to it."""
        seconds = None if timeout is None else check_timeout(timeout)
        session = await self._ready()
        return await Attempts(session.lease_timeout if seconds is None else seconds).make(act, self._ready)


async def _in_thread(act: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """Call what may take a while in a thread of its own: the loop's executor is its user's. What it makes for
    nobody is discarded."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: list[T], error: BaseException | None) -> None:
        if future.done():
            if result and discard is not None:
                discard(result[0])
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result[0])

    def run() -> None:
        result: list[T] = []
        failure: BaseException | None = None
        try:
            result.append(act())
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except own(RuntimeError):  # the loop is closed
            if result and discard is not None:
                discard(result[0])

    try:
        threading.Thread(target=run, name="shmpool-aio", daemon=True).start()
    except own(RuntimeError):
        await_the_end()
        raise
    return await future
