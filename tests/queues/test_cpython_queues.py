"""CPython's own tests of `multiprocessing`'s queues, run against ours, from the interpreter that runs this.

Each exception is named here with its reason.
"""

from __future__ import annotations

import multiprocessing
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

import shmpool

_theirs: Any = pytest.importorskip("test._test_multiprocessing")

EXCEPTIONS = {
    "test_queue_feeder_donot_stop_onexc": "there is no feeder thread: put raises in the caller",
    "test_queue_feeder_on_queue_feeder_error": "there is no feeder thread: put raises in the caller",
    "test_no_import_lock_contention": "it makes its own multiprocessing.Queue in a subprocess",
}


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=32) as broker:
        yield broker


def names() -> list[str]:
    loaded = unittest.TestLoader().getTestCaseNames(_theirs._TestQueue)
    return [name for name in loaded if not EXCEPTIONS.get(name)]


METHODS = ["fork", *(pytest.param(method, marks=pytest.mark.long) for method in ("spawn", "forkserver"))]


def case_of(method: str) -> Any:
    """Theirs for a start method. A process that is spawned finds it by its name, in this module."""
    context = multiprocessing.get_context(method)

    class Case(_theirs._TestQueue, unittest.TestCase):  # type: ignore[misc]
        __test__ = False  # pytest would run it as it is
        TYPE = "processes"
        Process = context.Process
        connection = multiprocessing.connection
        current_process = staticmethod(multiprocessing.current_process)
        parent_process = staticmethod(multiprocessing.parent_process)
        active_children = staticmethod(multiprocessing.active_children)
        Event = staticmethod(context.Event)
        Semaphore = staticmethod(context.Semaphore)

    Case.__name__ = Case.__qualname__ = f"Case_{method}"
    return Case


Case_fork, Case_spawn, Case_forkserver = case_of("fork"), case_of("spawn"), case_of("forkserver")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", names())
def test_theirs_pass(module_broker: shmpool.Broker, monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
    case, made = globals()[f"Case_{method}"], []
    with module_broker.connect() as pool:

        def keep(kind: type) -> Any:
            def make(maxsize: int = 0) -> Any:
                made.append(kind(maxsize, pool=pool))
                return made[-1]

            return staticmethod(make)

        monkeypatch.setattr(case, "Queue", keep(shmpool.Queue), raising=False)
        monkeypatch.setattr(case, "JoinableQueue", keep(shmpool.JoinableQueue), raising=False)
        monkeypatch.setattr(_theirs.multiprocessing, "Queue", lambda *a: make_plain(pool, made, *a), raising=False)
        result = unittest.TestResult()
        case(name).run(result)
        for one in made:
            one.close()
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]
    if result.skipped:
        pytest.skip(result.skipped[0][1])


def make_plain(pool: shmpool.Pool, made: list[Any], *arguments: Any) -> Any:
    made.append(shmpool.Queue(*arguments, pool=pool))
    return made[-1]
