"""CPython's own tests of process pools, run against `shmpool.Executor`, from the interpreter that runs this, if its
test package is installed: a package from 3.12 on, one module before.

Each exception is named here with its reason.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

import shmpool


def _find(module: str, name: str) -> Any:
    """A class of theirs; None where it is not there."""
    for place in (f"test.test_concurrent_futures.{module}", "test.test_concurrent_futures"):
        try:
            found = getattr(importlib.import_module(place), name, None)
        except ImportError:
            continue
        if found is not None:
            return found
    return None


#: The classes whose tests are run.
KINDS: dict[str, Any] = {
    name: found
    for module, name in {
        "test_process_pool": "ProcessPoolExecutorTest",
        "test_shutdown": "ProcessPoolShutdownTest",
        "test_wait": "WaitTests",
        "test_as_completed": "AsCompletedTests",
        "test_init": "InitializerMixin",
    }.items()
    if (found := _find(module, name)) is not None
}
if not KINDS:
    pytest.skip(
        f"CPython {sys.version.split()[0]} is installed here without test.test_concurrent_futures (some installations"
        " leave tests out); one that has them runs them, `python -m test test_concurrent_futures` tells",
        allow_module_level=True,
    )
_PRIVATE = "it reads private attributes of CPython's executor"
_OWN = "it starts an interpreter that uses CPython's executor"
EXCEPTIONS = {
    "test_shutdown_race_issue12456": "it leaves the iterator of a map behind that nobody reads",
    "test_idle_process_reuse_one": _PRIVATE,
    "test_idle_process_reuse_multiple": _PRIVATE,
    "test_max_tasks_per_child": _PRIVATE,
    "test_max_tasks_per_child_defaults_to_spawn_context": _PRIVATE,
    "test_max_tasks_early_shutdown": _PRIVATE,
    "test_saturation": _PRIVATE,
    "test_killed_child": _PRIVATE,
    "test_cancel_futures": "it cancels at once, when no call has begun here: all are cancelled, it wants some done",
    "test_cancel_futures_wait_false": _OWN,
    "test_interpreter_shutdown": _OWN,
    "test_hang_gh83386": _OWN,
    "test_hang_gh94440": _OWN,
    "test_submit_after_interpreter_shutdown": _OWN,
    "test_processes_terminate": _PRIVATE,
    "test_context_manager_shutdown": _PRIVATE,
    "test_del_shutdown": _PRIVATE,
    "test_shutdown_no_wait": _PRIVATE,
    "test_python_finalization_error": "it patches the start of processes within CPython's executor",
    "test_force_shutdown_workers": "kill_workers and terminate_workers are not there",
    "test_force_shutdown_workers_invalid_op": "kill_workers and terminate_workers are not there",
    "test_kill_workers": "kill_workers and terminate_workers are not there",
    "test_terminate_workers": "kill_workers and terminate_workers are not there",
}


def cases() -> Iterator[Any]:
    for method, base in (("fork", "Fork"), ("spawn", "Spawn"), ("forkserver", "Forkserver")):
        mixin = _find("util", f"ProcessPool{base}Mixin") or _find("util", f"ProcessPool{base.replace('s', 'S')}Mixin")
        for kind, theirs in KINDS.items():
            for name in unittest.TestLoader().getTestCaseNames(theirs):
                if mixin is not None and name not in EXCEPTIONS:
                    yield pytest.param(mixin, theirs, name, id=f"{method}-{kind}-{name}")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mixin", "theirs", "name"), list(cases()))
def test_theirs_pass(monkeypatch: pytest.MonkeyPatch, mixin: Any, theirs: Any, name: str) -> None:
    def make(*given: Any, **options: Any) -> shmpool.Executor:
        return shmpool.Executor(*given, **{"memory_limit": "16MiB", **options})

    # A child finds what is pickled for it by its base's name.
    place = {"__module__": theirs.__module__, "__qualname__": theirs.__name__}
    members = {"executor_type": staticmethod(make), "worker_count": 2, **place}
    base = _find("util", "BaseTestCase") or unittest.TestCase
    case = type(theirs.__name__, (mixin, theirs) if issubclass(theirs, base) else (theirs, mixin, base), members)
    monkeypatch.setattr(sys.modules[theirs.__module__], theirs.__name__, case)
    result = unittest.TestResult()
    case(name).run(result)
    for child in multiprocessing.active_children():
        child.join(10)
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]
    if result.skipped:
        pytest.skip(result.skipped[0][1])
