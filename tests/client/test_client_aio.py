"""`shmpool.aio`: hits run at once, waits suspend, and a task that is cancelled gives everything back."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import pickle
import random
import signal
from collections.abc import Awaitable, Callable
from queue import Empty, Full
from typing import Any

import numpy as np
import pytest
from patience import settle

import shmpool
from shmpool import Strategy
from shmpool.stats import query

MIB = 1024 * 1024
small = pytest.mark.broker(memory_limit="16MiB", lease_timeout=30)


def in_loop(broker: shmpool.Broker, work: Callable[[shmpool.aio.Pool], Awaitable[Any]]) -> Any:
    """What *work* returns, given a pool of its loop; then nothing is left."""

    async def run() -> Any:
        async with shmpool.aio.connect(broker.address) as pool:
            return await work(pool)

    result = asyncio.run(run())
    assert settle(lambda: query(broker.address).active_buffers) == 0
    return result


async def filled(pool: shmpool.aio.Pool, nbytes: int = 2 * MIB) -> list[shmpool.Lease]:
    """All that the pool has, leased."""
    leases = []
    while True:
        try:
            leases.append(await pool.lease(nbytes, timeout=0))
        except (shmpool.LeaseTimeout, shmpool.SharedMemoryFull):
            return leases


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_what_is_there_is_leased_and_opened_without_a_turn_of_the_loop(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        async with pool.lease(1000) as lease:  # a first one, from the broker
            lease.write(b"x" * 1000)
        steps = []
        asyncio.get_running_loop().call_soon(steps.append, "turn")
        for _ in range(50):
            async with pool.lease(1000) as lease:
                lease.write(b"y" * 1000)
                handle = lease.publish()
            async with pool.open(handle) as buffer:
                assert buffer.view == b"y" * 1000
            assert (await pool.get(await pool.put(["a", 1]))) == ["a", 1]
        assert steps == []

    in_loop(broker, work)


@pytest.mark.parametrize("nbytes", [1000, 60_000, 300_000, 3 * MIB])
def test_all_sizes_and_strategies_come_and_go(broker: shmpool.Broker, nbytes: int) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        for strategy in (Strategy.ADAPTIVE, Strategy.CHUNKED, Strategy.DIRECT):
            handles = []
            for at in range(3):
                lease = await pool.lease(nbytes, strategy=strategy)
                lease.write(bytes([at]) * nbytes)
                handles.append(lease.publish())
            for at, handle in enumerate(handles):
                async with pool.open(handle) as buffer:
                    assert buffer.view == bytes([at]) * nbytes

    in_loop(broker, work)


@small
def test_twenty_leases_that_wait_hold_up_nobody(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        held = await filled(pool)
        served: list[int] = []

        async def wait(number: int) -> None:
            async with pool.lease(2 * MIB) as lease:
                served.append(number)
                assert lease.nbytes == 2 * MIB

        waiting = [asyncio.create_task(wait(number)) for number in range(20)]
        await turns()
        assert not served
        assert await asyncio.to_thread(abs, -1) == 1  # the loop's executor is free, and so is the loop
        held.pop().release()
        await asyncio.gather(*waiting)
        assert (
            sorted(served) == list(range(20)) and served[0] == 0
        )  # a process has 16 places in line, the others take turns
        for lease in held:
            lease.release()

    in_loop(broker, work)


@small
def test_a_wait_ends_with_its_timeout_or_the_task_s(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        held = await filled(pool)
        with pytest.raises(shmpool.LeaseTimeout, match=r"within 0\.[0-9]+ s.*keeps most"):
            await pool.lease(2 * MIB, timeout=0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.lease(2 * MIB)
        with pytest.raises(shmpool.LeaseTimeout):
            await pool.put(bytes(2 * MIB), timeout=0)
        for lease in held:
            lease.release()
        (await pool.lease(2 * MIB)).release()

    in_loop(broker, work)


@small
def test_cancelled_tasks_give_everything_back_whatever_crosses(broker: shmpool.Broker) -> None:
    """Grants and cancellations cross in all ways: tasks with little time, over few buffers."""
    chance = random.Random(14)

    async def work(pool: shmpool.aio.Pool) -> int:
        served = 0

        async def one(nbytes: int, seconds: float) -> None:
            nonlocal served
            try:
                async with asyncio.timeout(seconds), pool.lease(nbytes) as lease:
                    lease.view[:1] = b"x"
                    served += 1
                    await asyncio.sleep(chance.random() * 0.002)
            except TimeoutError:
                pass

        for _ in range(8):
            sizes = [chance.choice((1000, 300_000, 2 * MIB, 4 * MIB)) for _ in range(30)]
            await asyncio.gather(*(one(nbytes, chance.random() * 0.01) for nbytes in sizes))
        held = await filled(pool)
        tasks = [asyncio.ensure_future(pool.put(bytes(2 * MIB))) for _ in range(10)]
        await turns()
        for task in tasks:
            task.cancel()
        for handle in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(
                handle, shmpool.Handle
            ):  # there was room after all: what the others were granted came back late
                pool.discard(handle)
            else:
                assert isinstance(handle, asyncio.CancelledError)
        for lease in held:
            lease.release()
        return served

    assert in_loop(broker, work) > 0


def test_a_pool_belongs_to_its_loop(broker: shmpool.Broker) -> None:
    async def make() -> shmpool.aio.Pool:
        return await shmpool.aio.connect(broker.address)

    pool = asyncio.run(make())

    async def use() -> None:
        for verb in (pool.lease(10), pool.put(1), pool.find("x"), pool.stats()):
            with pytest.raises(RuntimeError, match="another event loop"):
                await verb

    asyncio.run(use())
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"Pool cannot be copied or pickled.*send its `sync`"):
            way(pool)
    pool.close()


def test_objects_and_shared_publications(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        array = np.arange(100_000.0)
        first, second = await pool.put(array, readers=2)
        assert (await pool.get(first) == await pool.get(second)).all()
        waiting = asyncio.create_task(pool.find("table", timeout=30))
        await turns()
        shared = await pool.share(array, "table", keep=True)
        found = await waiting
        assert (await pool.get(found) == array).all()
        async with pool.open(found) as buffer:
            assert buffer.nbytes >= array.nbytes
        with pytest.raises(shmpool.NameTaken):
            await pool.share(array, "table")
        with pytest.raises(shmpool.NotFound):
            await pool.find("other")
        assert await pool.names() == ["table"]
        assert (await pool.stats()).active_buffers >= 1
        await pool.drop("table")
        shared.release()
        async with pool.empty((1000,), "float64") as born:
            born.array[:] = 7
            handle = born.publish()
        assert (await pool.get(handle)).sum() == 7000
        pool.discard(await pool.put(b"x" * 100_000))
        await pool.put(b"x" * 100_000)
        assert pool.reclaim() == 1

    in_loop(broker, work)


def test_one_task_makes_what_many_ask_for(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        made = 0

        async def make() -> Any:
            nonlocal made
            made += 1
            await turns()
            if made == 1:
                raise ZeroDivisionError
            return {"made": made}

        gets = [pool.get_or_share("cached", make) for _ in range(5)]
        done = await asyncio.gather(*gets, return_exceptions=True)
        failed = [one for one in done if isinstance(one, ZeroDivisionError)]
        assert len(failed) == 1 and made == 2
        for one in done:
            assert one in failed or (await pool.get(one)) == {"made": 2}
        del done, one

    in_loop(broker, work)


@small
def test_closing_ends_what_waits(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        held = await filled(pool)
        waiting = [asyncio.ensure_future(pool.put(bytes(2 * MIB))) for _ in range(3)]
        await turns()
        for lease in held[1:]:
            lease.release()
        held[0].release()
        pool.close()
        for task in waiting:
            try:
                await task
            except shmpool.PoolClosed:
                pass
        with pytest.raises(shmpool.PoolClosed):
            await pool.lease(1000)

    in_loop(broker, work)


def test_what_cannot_be_pickled_leases_nothing(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        with pytest.raises(Exception, match="pickle"):
            await pool.put(lambda: None)
        with pytest.raises(shmpool.InvalidSize):
            await pool.lease(1 << 50)
        with pytest.raises(TypeError):
            await pool.lease(1000, timeout="soon")  # type: ignore[arg-type]
        with pytest.raises(shmpool.InvalidHandle):
            await pool.open(b"no handle")

    in_loop(broker, work)


def test_queues_are_awaited_at_both_ends(broker: shmpool.Broker) -> None:
    async def work(pool: shmpool.aio.Pool) -> None:
        async with pool.queue(maxsize=3) as queue:
            taken = [asyncio.ensure_future(queue.get()) for _ in range(4)]
            await turns()
            with pytest.raises(Empty):
                await queue.get(timeout=0)
            for timeout in ("1", True, -1):  # though there is room
                with pytest.raises((TypeError, ValueError), match="timeout"):
                    await queue.put(0, timeout)  # type: ignore[arg-type]
            for at in range(4):
                await queue.put(at)
            assert await asyncio.gather(*taken) == [0, 1, 2, 3]  # in line
            cancelled = asyncio.ensure_future(queue.get())
            await turns()
            cancelled.cancel()
            await asyncio.wait({cancelled})
            for at in range(3):
                await queue.put(at)
            assert cancelled.cancelled()
            with pytest.raises(Full):
                await queue.put(9, timeout=0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await queue.put(9)
            putting = asyncio.ensure_future(queue.put_many([3, np.arange(100_000), 5]))
            got = [await queue.get() for _ in range(4)]
            assert got == [0, 1, 2, 3] and await putting == 3
            assert (await queue.get()).sum() == 4999950000 and await queue.get_many(9) == [5]
            last = asyncio.ensure_future(queue.get())
            await turns()
            await asyncio.to_thread(queue.sync.put, "from a thread")
            assert await last == "from a thread"
            assert queue.empty() and not queue.full() and queue.qsize() == 0

    in_loop(broker, work)


def test_a_lease_that_waits_is_served_by_the_broker_that_comes_back(daemon: Any, address: str) -> None:
    first = daemon(memory_limit="16MiB")

    async def work() -> None:
        nonlocal first
        async with shmpool.aio.connect(address) as pool:
            held = await filled(pool)
            waiting = asyncio.ensure_future(pool.put(bytes(2 * MIB)))
            await turns()
            await asyncio.to_thread(first.end, signal.SIGKILL)
            await asyncio.to_thread(daemon, memory_limit="16MiB")
            for lease in held:
                lease.release()
            assert len(await pool.get(await waiting)) == 2 * MIB

    asyncio.run(work())


def test_waits_for_a_broker_that_this_process_closes_end_at_once() -> None:
    """It was asked again and again without a pause, and the loop stood still."""
    broker = shmpool.Broker(memory_limit="16MiB", lease_timeout=600)

    async def run() -> None:
        async with shmpool.aio.connect(broker.address) as pool:
            leases = await filled(pool)
            waiting = asyncio.ensure_future(pool.lease(2 * MIB))
            while not any("wait for memory" in alert for alert in query(broker.address).alerts):
                if waiting.done():  # a busy host had not let all of it be filled
                    leases.append(await waiting)
                    waiting = asyncio.ensure_future(pool.lease(2 * MIB))
                await asyncio.sleep(0.01)
            await asyncio.to_thread(broker.close)
            with pytest.raises(shmpool.BrokerUnavailable):
                await waiting
            with pytest.raises(shmpool.BrokerUnavailable):
                await pool.lease(8 * MIB)
            for lease in leases:
                lease.release()

    asyncio.run(run())


def test_connecting_where_nobody_listens_can_be_cancelled(tmp_path: Any) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await shmpool.aio.connect(tmp_path / "nobody", timeout=1)
        with pytest.raises(shmpool.BrokerUnavailable):
            await shmpool.aio.connect(tmp_path / "nobody", timeout=0)

    asyncio.run(work())


def test_a_storm_of_cancellations_loses_no_item_and_doubles_none(broker: shmpool.Broker) -> None:
    """Gets and puts that are cancelled at any turn of the loop have happened wholly, or not at all."""
    chance = random.Random(14)

    async def work(pool: shmpool.aio.Pool) -> None:
        put, got = [], []
        async with pool.queue(maxsize=2) as queue:

            async def produce(number: int) -> None:
                await queue.put((number, b"x" * (10_000 * (number % 2))))
                put.append(number)

            async def consume() -> None:
                got.append((await queue.get())[0])

            for first in range(0, 300, 30):
                tasks = [asyncio.ensure_future(produce(number)) for number in range(first, first + 30)]
                tasks += [asyncio.ensure_future(consume()) for _ in range(30)]
                chance.shuffle(tasks)
                for task in tasks[::2]:
                    await turns(chance.randrange(3))
                    task.cancel()
                await asyncio.wait(tasks, timeout=0.05)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            while not queue.empty():
                got.append((await queue.get())[0])
            assert sorted(got) == sorted(put) and len(put) > 30
            await asyncio.wait_for(queue.put("still works"), 30)
            assert await queue.get(timeout=30) == "still works"

    in_loop(broker, work)


def test_a_queue_belongs_to_its_loop(broker: shmpool.Broker) -> None:
    with broker.connect() as sync, contextlib.closing(shmpool.Queue(pool=sync)) as one:

        async def make() -> shmpool.aio.Queue:
            return shmpool.aio.Queue(one)

        queue = asyncio.run(make())

        async def use() -> None:
            for verb in (queue.put(1), queue.get(), queue.get_many(2), queue.put_many([1])):
                with pytest.raises(RuntimeError, match="another event loop"):
                    await verb
            with pytest.raises(RuntimeError, match="another event loop"):
                queue.put_nowait(1)

        asyncio.run(use())
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"Queue cannot be copied or pickled.*send its `sync`"):
                way(queue)
        assert one.empty()


def test_a_fork_leaves_the_loop_s_pool_to_the_parent(broker: shmpool.Broker) -> None:
    """A child of a loop is told so, and makes a pool of its own; what waits in the parent goes on."""

    async def in_child(theirs: shmpool.aio.Pool, queue: shmpool.aio.Queue) -> None:
        for verb in (theirs.lease(10), queue.get()):
            with pytest.raises(RuntimeError, match="another event loop"):
                await verb
        async with shmpool.aio.connect(broker.address) as pool, pool.lease(12) as lease:
            lease.write(b"from a child")
            await shmpool.aio.Queue(queue.sync).put(bytes(lease.view), timeout=30)

    async def work(pool: shmpool.aio.Pool) -> None:
        async with pool.queue() as queue, pool.lease(5000) as lease:
            waiting = asyncio.ensure_future(queue.get(timeout=60))
            await turns()
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    asyncio.run(in_child(pool, queue))
                    code = 0
                finally:
                    os._exit(code)
            assert await waiting == b"from a child"
            lease.view[:6] = b"theirs"  # the parent has what it had
            assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0

    in_loop(broker, work)
