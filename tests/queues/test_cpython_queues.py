"""CPython's own tests of `multiprocessing`'s queues, run against ours, from the interpreter that runs this.

Each exception is named here with its reason.
"""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

import shmpool

_theirs: Any = pytest.importorskip(
    "test._test_multiprocessing",
    reason=f"CPython {sys.version.split()[0]} is installed here without test._test_multiprocessing (some installations"
    " leave tests out); one that has it runs its queues' tests",
)

EXCEPTIONS = {
    "test_queue_feeder_donot_stop_onexc": "there is no feeder thread: put raises in the caller",
    "test_queue_feeder_on_queue_feeder_error": "there is no feeder thread: put raises in the caller",
    "test_closed": "it reads the ends of the pipe that a SimpleQueue has",
    "test_closed_queue_empty_exceptions": "one that is closed unused is closed, and raises ValueError",
    "test_empty_exceptions": "a closed queue raises ValueError, as put and get do",
    "test_no_import_lock_contention": "it makes its own multiprocessing.Queue in a subprocess",
}


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=32) as broker:
        yield broker


def cases() -> Iterator[Any]:
    """Start method, class and name of each test: those of the queues; under fork those of processes that talk through
    one, too, which need their class in the child."""
    for method in ("fork", "spawn", "forkserver"):
        for kind in ("_TestQueue", "TestSimpleQueue", *(("_TestProcess",) if method == "fork" else ())):
            case = getattr(_theirs, kind)
            for name in unittest.TestLoader().getTestCaseNames(case):
                talks = kind != "_TestProcess" or "self.Queue(" in inspect.getsource(getattr(case, name))
                if talks and name not in EXCEPTIONS:
                    marks = [] if method == "fork" else [pytest.mark.long]
                    yield pytest.param(method, kind, name, marks=marks, id=f"{method}-{kind}-{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "kind", "name"), list(cases()))
def test_theirs_pass(
    module_broker: shmpool.Broker, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, name: str
) -> None:
    context: Any = multiprocessing.get_context(method)
    made: list[Any] = []
    with module_broker.connect() as pool:

        def keep(queue: type) -> Any:
            def make(maxsize: int = 0) -> Any:
                made.append(queue(maxsize, pool=pool))
                return made[-1]

            return staticmethod(make)

        members: dict[str, Any] = {
            "TYPE": "processes",
            "Process": context.Process,
            "Queue": keep(shmpool.Queue),
            "JoinableQueue": keep(shmpool.JoinableQueue),
            "connection": multiprocessing.connection,
            "current_process": staticmethod(multiprocessing.current_process),
            "parent_process": staticmethod(multiprocessing.parent_process),
            "active_children": staticmethod(multiprocessing.active_children),
            "Event": staticmethod(context.Event),
            "Semaphore": staticmethod(context.Semaphore),
        }
        for mine in ("Queue", "SimpleQueue"):
            monkeypatch.setattr(_theirs.multiprocessing, mine, keep(shmpool.Queue).__func__)
        for theirs in ("Process", "Event"):
            monkeypatch.setattr(_theirs.multiprocessing, theirs, getattr(context, theirs))
        theirs_class = getattr(_theirs, kind)
        bases = (theirs_class,) if issubclass(theirs_class, unittest.TestCase) else (theirs_class, unittest.TestCase)
        result = unittest.TestResult()
        # A child finds what is pickled for it by its base's name.
        case = type(kind, bases, {**members, "__module__": _theirs.__name__, "__qualname__": kind})
        monkeypatch.setattr(_theirs, kind, case)
        case(name).run(result)
        for one in made:
            one.close()
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]
    if result.skipped:
        pytest.skip(result.skipped[0][1])
