"""`Queue` and `JoinableQueue`: the semantics of `multiprocessing`'s, over memory that the broker owns.

There is no feeder thread: `put` pickles in the caller and raises there. No process that dies blocks
another, and what is in a queue outlives who put it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from pickle import dumps
from queue import Full
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakValueDictionary

from ..errors import ShmpoolError
from ..link.waiting import check_timeout
from ..pool import BasePool
from ..protocol.handle import HANDLE_BYTES, Handle
from ..protocol.queues import Flag, Kind
from ..system import frames, hooks
from ..system.finalizers import ends_by
from ..system.here import HERE, OURS
from ..system.outside import own
from . import compiled, defaults
from .getting import MISSED
from .making import make
from .pickling import FLAT, Item, in_lease, mine, restored
from .putting import NoRoomInline
from .ring import Ring
from .runs import MOST_BYTES

if TYPE_CHECKING:
    from ..shared import Shared

Overflow = Literal["block", "drop_oldest", "drop_newest"]
OnDeadConsumer = Literal["drop", "requeue"]
_OVERFLOWS: Final = {"block": 0, "drop_oldest": Flag.DROP_OLDEST, "drop_newest": Flag.DROP_NEWEST}
_ON_DEAD_CONSUMER: Final = {"drop": 0, "requeue": Flag.REQUEUE}
_FOR_EVER: Final = float("inf")
_BYTES_ALONE: Final = {bytes}
_HANDLES_ALONE: Final = {Handle}


class _Rings:
    """Those of this process, one for each queue and session, whoever uses it."""

    def __init__(self) -> None:
        self.table: WeakValueDictionary[tuple[int, int, int], Ring] = WeakValueDictionary()
        self.users: dict[int, int] = {}
        self.lock = threading.RLock()

    def use(self, pool: BasePool, shared: Shared) -> Ring:
        session = pool._live_session()
        key = id(session), shared._row, shared._granted
        with self.lock:
            found = self.table.get(key)
            if found is None or found.session is not session or found.is_closed:
                found = Ring(pool, shared)
                self.users[id(found)] = 0
                self.table[key] = found
            self.users[id(found)] += 1
            return found

    def release(self, one: Ring) -> bool:
        """Whether nobody uses it any more."""
        with self.lock:
            left = self.users.get(id(one), 1) - 1
            if left:
                self.users[id(one)] = left
            else:
                self.users.pop(id(one), None)
            return not left


_rings = _Rings()


def _close_collected(queue: Queue) -> None:
    if getattr(queue, "_is_closed", True):
        return
    one, queue._ring = queue._ring, None
    try:
        if one is not None and HERE[OURS] and _rings.release(one):
            one.abandon()
    except own(ShmpoolError, OSError):
        pass
    queue._is_closed = True


@ends_by(_close_collected)
class Queue:
    """A queue between processes; *maxsize* 0 is as many items as its memory holds (`capacity`).

    *pool* None is the pool of this process tree: `shmpool.connect(autostart=True)`. With a *name* unrelated
    processes have the same queue: who comes first makes it. Picklable, for arguments of processes and
    for messages; a forked child uses its parent's. It lives as long as anybody has it (with *keep*, until
    `Pool.drop`), and what is in it as long as it does. *overflow* says what a full queue does: ``"block"``, or
    it drops (and counts, `dropped`) the oldest or the newest item, for cameras and sensors. *on_dead_consumer* says
    what becomes of the items in the hands of a consumer that dies: ``"drop"``, or ``"requeue"``: another gets
    them, so each comes at least once; an item is finished with the next `get` of that thread, or `task_done`.

    What is small lies in the queue itself, larger objects in leases; arrays come out read-only, over the
    pool's memory, which each keeps until it dies (of a queue that gives back: copied). `put` pickles at once. A
    process that dies blocks nobody. By many threads; not by a signal handler that interrupts another call of
    the same thread (RuntimeError). Unpickling runs code that the putter chose: trust who may write to the pool.
    """

    __slots__ = ("__dict__", "__weakref__", "_ring")

    _flags = 0

    def __init__(
        self,
        maxsize: int = 0,
        *,
        pool: BasePool | None = None,
        name: str | None = None,
        on_dead_consumer: OnDeadConsumer = "drop",
        overflow: Overflow = "block",
        keep: bool = False,
    ) -> None:
        if type(maxsize) is not int:
            raise TypeError(f"maxsize is a whole number, not {maxsize!r}")
        if type(overflow) is not str or overflow not in _OVERFLOWS:
            raise ValueError(f"overflow is 'block', 'drop_oldest' or 'drop_newest', not {overflow!r}")
        if type(on_dead_consumer) is not str or on_dead_consumer not in _ON_DEAD_CONSUMER:
            raise ValueError(f"on_dead_consumer is 'drop' or 'requeue', not {on_dead_consumer!r}")
        if pool is None:
            pool = defaults.find_pool()
        elif not isinstance(pool, BasePool):
            raise TypeError(f"pool is a shmpool.Pool or None, not {pool!r}")
        flags = self._flags | _OVERFLOWS[overflow] | _ON_DEAD_CONSUMER[on_dead_consumer]
        try:
            self._begin(pool, make(pool, max(0, maxsize), name, flags, keep), name)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def _begin(self, pool: BasePool, shared: Shared, name: str | None) -> None:
        self._pool, self._shared, self.name = pool, shared, name
        self._ring: Ring | None = None
        self._is_closed = False  # last: whose finalizer finds that has the others
        try:
            self._attach()
        except BaseException:
            self._is_closed = True
            shared.release()
            raise

    def _attach(self) -> Ring:
        """This process's end; anew in a forked child, which lets go of its parent's only then: until then that
        keeps the queue."""
        if self._is_closed:
            raise ValueError(f"Queue {self!r} is closed")
        self._ring = one = _rings.use(self._pool, self._shared)
        return one

    def _here(self) -> Ring:
        one = self._ring
        if one is None or one.session.is_over or not HERE[OURS]:
            return self._attach()
        return one

    # --- put ------------------------------------------------------------------------------------------

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object; waits for room, *timeout* seconds at the longest. Raises `queue.Full`,
        `QueueShutDown`, ValueError after `close`, and what pickling and `Pool.lease` raise."""
        if timeout is not None:
            check_wait(timeout)
        one = self._ring
        if one is None or one.session.is_over or not HERE[OURS]:
            one = self._attach()
        data: Any
        if type(obj) is bytes:
            data, kind = obj, Kind.BYTES
        elif type(obj) is Handle and len(obj) == HANDLE_BYTES:
            data, kind = bytes(obj), Kind.TOKEN
        else:
            data, kind = dumps(obj, 3) if type(obj) in FLAT else mine.dumps(obj, one.most_inline), Kind.INLINE
        if type(data) is bytes and one.put_fast(data, kind):
            return
        deadline = _deadline(block, timeout)
        try:
            self._put_all(one, [self._item(one, obj, data, kind, deadline)], deadline)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def put_many(self, objs: Iterable[Any], block: bool = True, timeout: float | None = None) -> int:
        """Put objects in order, as many under one lock as there is room for, and say how many were put:
        fewer than all only when the time was over. Raises like `put`; nothing is put of what cannot be pickled."""
        one = self._here()
        deadline = _deadline(block, timeout)
        done, items = 0, list[Item]()
        try:
            done, objs = self._put_runs(one, list(objs), deadline)
            most = one.most_inline
            for obj in objs:
                if type(obj) is bytes and len(obj) <= most:
                    items.append(Item(Kind.BYTES, obj, None))
                else:
                    data = dumps(obj, 3) if type(obj) in FLAT else mine.dumps(obj, most)
                    items.append(self._item(one, obj, data, Kind.INLINE, deadline))
            try:
                return done + self._put_all(one, items, deadline) if items else done
            except own(Full):
                if done:
                    return done
                raise
        except BaseException as error:
            _release(items)
            frames.clear(error)  # somebody may keep it
            raise

    def _put_runs(self, one: Ring, objs: list[Any], deadline: float) -> tuple[int, list[Any]]:
        """Put small objects of the plainest kinds, as many as lie at the beginning and find room: how many, and those
        that are left."""
        kinds = set(map(type, objs))
        if kinds == _BYTES_ALONE:
            data, kind = objs, Kind.BYTES
        elif kinds == _HANDLES_ALONE and set(map(len, objs)) == {HANDLE_BYTES}:
            data, kind = list(map(bytes, objs)), Kind.TOKEN
        elif kinds and kinds <= FLAT:
            data, kind = [dumps(obj, 3) for obj in objs], Kind.INLINE
        else:
            return 0, objs
        if max(map(len, data)) > MOST_BYTES:
            return 0, objs
        done = 0
        while done < len(data):
            stored = one.under(one.tail_end, deadline, one.put_run, data[done:] if done else data, kind)
            if not stored:
                break
            one.tell_of_items(stored)
            done += stored
        return done, objs[done:]

    def _put_all(self, one: Ring, items: list[Item], deadline: float) -> int:
        done = 0
        try:
            while True:
                try:
                    return done + one.put(items[done:], deadline)
                except own(NoRoomInline) as full:
                    done += full.done
                    spilt = items[done].inline
                    assert spilt is not None
                    pickled = dumps(spilt, 3) if items[done].kind == Kind.BYTES else spilt
                    items[done] = self._leased(None, [pickled], deadline)
                except own(Full):
                    if done:
                        return done
                    raise
        finally:
            _release(items)

    def _item(self, one: Ring, obj: Any, data: bytes | list[Any] | None, kind: int, deadline: float) -> Item:
        if type(data) is bytes:
            if len(data) <= one.most_inline:
                return Item(kind, data, None)
            data = [data if kind == Kind.INLINE else dumps(data, 3)]
        return self._leased(obj, data, deadline)  # type: ignore[arg-type]

    def _leased(self, obj: Any, pieces: list[Any] | None, deadline: float) -> Item:
        try:
            return in_lease(self._pool, obj, pieces, None if deadline == _FOR_EVER else _left(deadline))
        except own(TimeoutError) as error:
            if deadline == _FOR_EVER:
                raise
            raise Full(str(error)) from error

    def put_nowait(self, obj: Any) -> None:
        """Put an object, or raise `queue.Full`."""
        self.put(obj, False)

    # --- get ------------------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest object; waits for one, *timeout* seconds at the longest. Raises `queue.Empty`,
        `QueueShutDown` once one that was shut down is empty, ValueError after `close`, `FormatError` for an
        item that somebody has scribbled on, and what unpickling raises: that item is gone then."""
        if timeout is not None:
            check_wait(timeout)
        one = self._ring
        if one is None or one.session.is_over or not HERE[OURS]:
            one = self._attach()
        try:
            found = one.get_fast()
            if found is MISSED:
                deadline = _deadline(block, timeout)
                if one.await_item(deadline):
                    found = one.get_fast()
                if found is MISSED:
                    return restored(*one.get(1, deadline)[0])
            return found
        except BaseException as error:
            found = None
            frames.clear(error)  # somebody may keep it
            raise

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Take up to *n* objects of what is there, at least one, and no more than 64 at a time. Raises like `get`."""
        if type(n) is not int or n < 1:
            raise ValueError(f"n is a whole number from 1 on, not {n!r}")
        one = self._here()
        try:
            return one.get_many(n, _deadline(block, timeout))
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def get_nowait(self) -> Any:
        """Take an object, or raise `queue.Empty`."""
        return self.get(False)

    # --- figures --------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """The number of items, exactly, at this moment."""
        return self._here().size

    def empty(self) -> bool:
        """Whether it has no item at this moment."""
        return not self._here().size

    def full(self) -> bool:
        """Whether it has no room at this moment."""
        one = self._here()
        return one.size >= one.capacity

    @property
    def capacity(self) -> int:
        """The most items that it holds."""
        return self._here().capacity

    @property
    def dropped(self) -> int:
        """How many items *overflow* has dropped."""
        return self._here().dropped

    def fileno(self) -> int:
        """A descriptor that is readable when something was put, for `select` and event loops. A hint: it may
        be readable though another process was faster, and `get_nowait` raises `queue.Empty` then. This process's;
        open until `close`."""
        one = self._here()
        return one.watch()

    # --- its end --------------------------------------------------------------------------------------

    def shutdown(self, immediate: bool = False) -> None:
        """For all processes: `put` raises `QueueShutDown` from now on, `get` does once it is empty.
        *immediate*: what is in it is discarded."""
        one = self._here()
        one.shut(immediate=immediate)

    def close(self) -> None:
        """This process uses it no more. With the last one to close it goes what is in it."""
        self._is_closed = True
        one, self._ring = self._ring, None
        if one is not None and HERE[OURS] and _rings.release(one):
            one.close()
        self._shared.release()

    def join_thread(self) -> None:
        """Nothing: there is no feeder thread. Only after `close`, as for `multiprocessing.Queue`."""
        assert self._is_closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Nothing: there is no feeder thread."""

    def __reduce__(self) -> tuple[Any, ...]:
        context = sys.modules.get("multiprocessing.context")
        spawning = context.get_spawning_popen() if context is not None else None
        if spawning is not None:  # whoever starts it may let go of the queue before the child has it
            spawning.__dict__.setdefault("_shmpool_queues", []).append(self)
        return _receive, (type(self), self._pool, self._shared, self.name)

    def __repr__(self) -> str:
        named = f" {self.name!r}" if self.name else ""
        return f"<shmpool.{type(self).__name__}{named}{', closed' if self._is_closed else ''}>"


class JoinableQueue(Queue):
    """A queue whose items are counted until `task_done` was called for each. What a consumer that died had in
    its hands counts no more (or is given to another): who waits in `join` does not wait for the dead."""

    _flags = Flag.JOINABLE

    def task_done(self) -> None:
        """An item that was taken is finished. Raises ValueError when called more often than items were put."""
        one = self._here()
        one.note_done()

    def join(self) -> None:
        """Wait until all items are finished."""
        self._here().wait_finished()


def shut(pool: BasePool, shared: Shared) -> None:
    """Shut a queue down that was dropped."""
    one = _rings.use(pool, shared)
    try:
        one.shut(immediate=True)
    finally:
        if _rings.release(one):
            one.close()


def _receive(kind: type[Queue], pool: BasePool, shared: Shared, name: str | None) -> Queue:
    """Unpickle."""
    received = kind.__new__(kind)
    received._begin(pool, shared, name)
    return received


def _release(items: list[Item]) -> None:
    """What was not put; nothing happens to what was."""
    for item in items:
        if item.lease is not None:
            item.lease.release()


def _deadline(block: bool, timeout: float | None) -> float:
    seconds = _FOR_EVER if timeout is None else check_wait(timeout)
    return time.monotonic() + seconds if block else 0.0


def check_wait(timeout: Any) -> float:
    """*timeout* as `check_timeout` has it, but that a time which is over is none, as for multiprocessing's."""
    return check_timeout(0.0 if isinstance(timeout, int | float) and timeout < 0 else timeout)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _abandon_all() -> None:
    global _rings
    _rings = _Rings()


hooks.in_child(_abandon_all)
if compiled.install is not None:
    compiled.install()
