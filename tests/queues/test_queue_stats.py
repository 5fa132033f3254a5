"""What operators see of queues: `shmpool stats`, `shmpool leases --queues`, and the metrics."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty

import pytest

import shmpool
from shmpool.exposition import text
from shmpool.stats import QueueStats, query

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_helpers import shmpool_command


@pytest.fixture(scope="module")
def broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=8) as broker:
        yield broker


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def only(address: str) -> QueueStats:
    [found] = query(address).queues
    return found


@pytest.mark.parametrize("maxsize", [0, 20_000])  # in a direct segment, and in chunks or a slot
def test_depth_members_and_how_it_was_made(broker: shmpool.Broker, maxsize: int) -> None:
    with broker.connect() as pool, broker.connect() as other:
        one = pool.queue("work", maxsize=maxsize, overflow="drop_newest")
        for number in range(3):
            one.put(number)
        one.put(b"x" * 100_000)
        found = only(broker.address)
        assert (found.name, found.items, found.maxsize, found.dropped) == ("work", 4, maxsize, 0)
        assert (found.capacity, found.overflow, found.on_dead_consumer) == (one.capacity, "drop_newest", "drop")
        assert found.used_bytes == 4 * 32 and found.bytes > 32 * found.capacity
        assert found.members == [os.getpid()] and not found.joinable and not found.shut
        assert not (found.putting or found.getting or found.waiting_getters or found.waiting_putters)
        same = other.queue("work", maxsize=maxsize, overflow="drop_newest")
        assert [same.get() for _ in range(3)] == [0, 1, 2]
        assert only(broker.address).items == 1
        same.shutdown()
        assert only(broker.address).shut
        same.close()
        one.close()
    eventually(lambda: not query(broker.address).queues)


def test_who_waits_is_counted(broker: shmpool.Broker) -> None:
    with broker.connect() as pool:
        one = shmpool.JoinableQueue(1, pool=pool)
        got: list[object] = []
        getter = threading.Thread(target=lambda: got.append(one.get(timeout=60)))
        getter.start()
        eventually(lambda: only(broker.address).waiting_getters == 1)
        one.put("a")
        getter.join()
        assert got == ["a"] and only(broker.address).joinable
        one.put("b")
        putter = threading.Thread(target=one.put, args=("c",))
        putter.start()
        eventually(lambda: only(broker.address).waiting_putters == 1)
        assert one.get() == "b"
        putter.join()
        one.close()


def test_the_commands_show_them(broker: shmpool.Broker) -> None:
    with broker.connect() as pool:
        assert "there is no queue" in shmpool_command("leases", "--queues", SHMPOOL_SOCKET=broker.address).stdout
        one = pool.queue("frames", overflow="drop_oldest")
        one.put_many(range(1234))
        for words in (("stats",), ("leases", "--queues")):
            shown = shmpool_command(*words, SHMPOOL_SOCKET=broker.address, COLUMNS="160").stdout
            assert "frames (drop oldest)" in shown and "1,234" in shown and str(os.getpid()) in shown
        refused = shmpool_command("leases", "--queues", "--each", SHMPOOL_SOCKET=broker.address)
        assert refused.returncode == 2 and "--queues" in refused.stderr
        one.close()


def test_depth_is_a_metric_by_name(broker: shmpool.Broker) -> None:
    with broker.connect() as pool, contextlib.ExitStack() as stack:
        for name, count in (("frames", 3), (None, 1), (None, 1)):
            queue = stack.enter_context(contextlib.closing(pool.queue(name)))
            queue.put_many(range(count))
        lines = text(query(broker.address)).decode().splitlines()
        assert 'shmpool_queue_items{queue="frames"} 3.0' in lines
        assert 'shmpool_queue_items{queue=""} 2.0' in lines, "those without a name are told together"
        assert 'shmpool_queue_dropped_total{queue="frames"} 0.0' in lines


def test_what_a_member_scribbles_harms_nobody_who_asks(broker: shmpool.Broker) -> None:
    with broker.connect() as pool:
        one = pool.queue()
        ring = one._here()
        was = ring.words[:1024].tolist()
        for number in range(1024):
            ring.words[number] = (1 << 64) - 1 if number else was[0]
        assert query(broker.address).queues == []
        for number, value in enumerate(was):
            ring.words[number] = value if number in range(16) else (1 << 64) - 1
        found = only(broker.address)
        assert 0 <= found.items <= found.capacity and found.used_bytes <= found.bytes and found.putting == []
        for number, value in enumerate(was):
            ring.words[number] = value
        with pytest.raises(Empty):
            one.get_nowait()
        one.close()
