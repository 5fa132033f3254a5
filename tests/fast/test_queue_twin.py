"""A queue's short ways: the compiled ones do what the plain ones do, and mix with them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import twins
from test_twin import hear

import shmpool

OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"maxsize": 5}, {"maxsize": 100, "overflow": "drop_oldest"}, {"maxsize": 5, "overflow": "drop_newest"},
    {"joinable": True}, {"on_dead_consumer": "requeue"},
)  # fmt: skip


def _walk_twice(seed: int, steps: int, options: dict[str, Any]) -> None:
    walk = "import runpy; runpy.run_module('queue_walk', run_name='__main__')"
    plain, compiled = [
        json.loads(twins.run(kind, walk, str(seed), str(steps), json.dumps(options))) for kind in ("plain", "compiled")
    ]
    assert len(plain) == len(compiled) == steps
    for number, (ours, theirs) in enumerate(zip(plain, compiled, strict=True)):
        assert theirs == ours, f"step {number}"


def test_every_word_of_a_queue_is_the_same() -> None:
    _walk_twice(1, 300, {"maxsize": 60})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "seed", [pytest.param(2, marks=pytest.mark.long), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (3, 4))]
)
def test_every_word_of_a_queue_is_the_same_for_many_walks(seed: int, options: dict[str, Any]) -> None:
    _walk_twice(seed, 800, options)


PRODUCER = """
import sys, shmpool
with shmpool.connect(sys.argv[1]) as pool:
    queue, name, count = pool.queue("race"), sys.argv[2], int(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.buffer.read(1)
    number = 0
    while number < count:
        if number % 5:
            queue.put(b"%s %d" % (name.encode(), number) + b"." * (number % 3 * 500))
            number += 1
        else:
            more = range(number, min(number + 7, count))
            number += queue.put_many([b"%s %d" % (name.encode(), one) for one in more])
    print("done", flush=True)
    sys.stdin.buffer.read(1)
"""

CONSUMER = """
import json, sys, shmpool
got, last, turns = {}, {}, 0
with shmpool.connect(sys.argv[1]) as pool:
    queue = pool.queue("race")
    print("ready", flush=True)
    while True:
        turns += 1
        items = queue.get_many(5) if turns % 3 == 0 else [queue.get()]
        for at, item in enumerate(items):
            if item == b"end":
                queue.put_many(items[at + 1 :])  # the other's
                print(json.dumps(got), flush=True)
                sys.stdin.buffer.read(1)
                sys.exit()
            name, number = item.rstrip(b".").decode().split()
            assert int(number) > last.get(name, -1), "out of order"
            last[name] = int(number)
            got.setdefault(name, []).append(int(number))
"""


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.long)])
def test_plain_and_compiled_processes_share_a_queue(count: int) -> None:
    """Each item comes once, and each producer's in order."""
    with shmpool.Broker(memory_limit="64MiB", max_clients=16) as broker, broker.connect() as pool:
        queue = pool.queue("race")
        kinds = ("plain", "compiled")
        producers = [twins.start(kind, PRODUCER, broker.address, kind, str(count)) for kind in kinds]
        consumers = [twins.start(kind, CONSUMER, broker.address) for kind in kinds]
        everybody = producers + consumers
        try:
            for one in everybody:
                assert hear(one) == "ready"
            for one in producers:
                one.stdin.write(b"!")  # type: ignore[union-attr]
            for one in producers:
                assert hear(one) == "done"
            got = Counter[tuple[str, int]]()
            for _ in consumers:
                queue.put(b"end")
            for one in consumers:
                found = json.loads(hear(one))
                got.update((name, number) for name, numbers in found.items() for number in numbers)
            assert got == {(kind, number): 1 for kind in kinds for number in range(count)}
        finally:
            for one in everybody:
                one.communicate(timeout=60)
            queue.close()


OUT_OF_MEMORY = """
import _testcapi, sys, shmpool
with shmpool.connect(sys.argv[1]) as pool:
    queue = pool.queue("scarce")
    for size in (10, 3000):
        queue.put(b"x" * size)
        get, failed = queue.get, 0
        for start in range(12):
            try:
                _testcapi.set_nomemory(start, start + 1)
                found = get()
            except MemoryError:
                found = None
            finally:
                _testcapi.remove_mem_hooks()
            if found is not None:
                break
            failed += 1
            assert queue.qsize() == 1
        assert found == b"x" * size and failed, failed
        queue.put(b"after")
        assert queue.get() == b"after"
print("kept")
"""


def test_item_that_there_is_no_memory_for_stays_in_the_queue() -> None:
    pytest.importorskip("_testcapi")
    with shmpool.Broker(memory_limit="16MiB") as broker:
        assert twins.run("compiled", OUT_OF_MEMORY, broker.address) == "kept"
