"""The plugin of pytest that runs its collected tests against one mutant after the other."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.runner import runtestprotocol

from .mutants import Mutant

Outcome = Literal["killed", "survived", "not called"]
#: A mutant's tests may take so many times their own processor time, and so many seconds more.
PATIENCE, MORE = 5, 5
#: One that survives is judged by tests of so many times the time.
AGAIN = 6
#: Bytes of address space: a loop that does not end must not take the machine with it.
MOST_MEMORY = 4 << 30

#: A function by its file, qualified name and first line.
Function = tuple[str, str, int]


@dataclass
class Calls:
    """By test, its processor time, and which functions it calls."""

    seconds: dict[str, float] = field(default_factory=dict)
    functions: dict[str, set[Function]] = field(default_factory=dict)

    def tests_of(self, mutant: Mutant, most_seconds: float) -> list[str]:
        """The tests that can notice a mutant, one of each file by turns, the quickest first, as many as there is time
        for: what a file is about are its own tests the first to notice."""
        called, name = Counter[str](), (str(mutant.path), *(mutant.function or ()))
        ranked: list[tuple[int, float, str]] = []
        for test in sorted(self.seconds, key=self.seconds.__getitem__):
            if mutant.function is None or name in self.functions[test]:
                file = test.partition("::")[0]
                ranked.append((called[file], self.seconds[test], test))
                called[file] += 1
        chosen, spent = [], 0.0
        for _, seconds, test in sorted(ranked):
            spent += seconds
            if chosen and spent > most_seconds:
                break
            chosen.append(test)
        return chosen


class Runner:
    """Give it to `pytest.main`. *tell* is called for each mutant as soon as it is judged. What the tests call is read
    from the file *calls*, or written there."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        seconds: float,
        seconds_each: float,
        tell: Callable[[Mutant, Outcome, str], None],
        calls: Path | None = None,
    ) -> None:
        self._mutants = mutants
        self._seconds = seconds
        self._seconds_each = seconds_each
        self._tell = tell
        #: Where it is kept what each test calls.
        self._calls = calls

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        calls = as_calls(self._told_calls(session.items))
        deadline = time.monotonic() + self._seconds
        for mutant in self._mutants:
            if time.monotonic() > deadline:
                break
            self._tell(mutant, *self._judge_by(mutant, items, calls))
        return True

    def _judge_by(self, mutant: Mutant, items: dict[str, pytest.Item], calls: Calls) -> tuple[Outcome, str]:
        """The tests that there is time for judge it; where they notice nothing, more of them do."""
        tests = calls.tests_of(mutant, self._seconds_each)
        for some in (tests, calls.tests_of(mutant, AGAIN * self._seconds_each)[len(tests) :]):
            if not some:
                continue
            seconds = sum(calls.seconds[test] for test in some)
            noticed = _in_child(lambda: _judge(mutant, [items[test] for test in some]), PATIENCE * seconds + MORE)  # noqa: B023
            if noticed != "":
                return "killed", noticed or "ended the process, or its time"
        return ("survived" if tests else "not called"), ""

    def _told_calls(self, items: list[pytest.Item]) -> dict[str, Any]:
        if self._calls is not None and self._calls.exists():
            kept: dict[str, Any] = json.loads(self._calls.read_text())
            return kept
        told = _in_child(lambda: _calls_of(items))
        if told is None:
            raise pytest.UsageError("the tests must pass before they can judge mutants")
        if self._calls is not None:
            self._calls.write_text(json.dumps(told))
        return told  # type: ignore[no-any-return]


# --- in a child ------------------------------------------------------------------------------------


def _judge(mutant: Mutant, items: list[pytest.Item]) -> str:
    """The first test that fails under the mutant, or nothing."""
    _apply(mutant)
    for item, following in zip(items, [*items[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return ""


def _apply(mutant: Mutant) -> None:
    if mutant.constant is not None:
        name, value = mutant.constant
        owner: Any = _module(mutant.path)
        of_class, _, attribute = name.rpartition(".")
        if of_class:
            setattr(getattr(owner, of_class), attribute, value)
            return
        for module in list(sys.modules.values()):
            if module is owner or (
                getattr(module, name, None) == getattr(owner, name) and _is_ours(module, owner)
            ):  # it was imported by its name
                setattr(module, name, value)
        return
    code = mutant.code()
    for function in _functions_in(_module(mutant.path)):
        was = function.__code__
        if (was.co_filename, was.co_qualname, was.co_firstlineno) == (str(mutant.path), *(mutant.function or ())):
            function.__code__ = code


def _module(path: Path) -> types.ModuleType:
    return next(module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == str(path))


def _is_ours(module: types.ModuleType, owner: types.ModuleType) -> bool:
    """The packages' own modules; a test keeps the number that it was written for."""
    return module.__name__.split(".")[0] in ("shmpool", "shmpoold") and owner.__name__ != module.__name__


def _functions_in(owner: Any) -> Iterator[types.FunctionType]:
    for value in list(vars(owner).values()):
        value = getattr(value, "__func__", value)
        if isinstance(value, property):
            yield from (one for one in (value.fget, value.fset) if isinstance(one, types.FunctionType))
        elif isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type) and not isinstance(owner, type):  # some say that their module is the package
            yield from _functions_in(value)


def _calls_of(items: list[pytest.Item]) -> dict[str, Any] | None:
    """Run all tests once: None when one fails."""
    rooms = ("/shmpoold/core/", "/shmpool/protocol/")
    told: dict[str, Any] = {}
    for item, following in zip(items, [*items[1:], None], strict=True):
        called: set[types.CodeType] = set()

        def note(frame: types.FrameType, event: str, _: Any, called: set[types.CodeType] = called) -> None:
            if event == "call":
                called.add(frame.f_code)

        started = time.process_time()
        sys.setprofile(note)
        reports = runtestprotocol(item, log=False, nextitem=following)
        sys.setprofile(None)
        if any(report.failed for report in reports):
            print(f"{item.nodeid} fails without a mutant", file=sys.stderr)
            return None
        functions = [
            (code.co_filename, code.co_qualname, code.co_firstlineno)
            for code in called
            if any(room in code.co_filename for room in rooms)
        ]
        told[item.nodeid] = (time.process_time() - started, functions)
    return told


def _in_child(work: Callable[[], Any], seconds: float | None = None) -> Any:
    """What *work* returns in a forked child; None when it died or used up its processor time."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(quiet, descriptor)
        if seconds is not None:
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        try:
            answer = json.dumps(work()).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(write)
    data = bytearray()
    limit = None if seconds is None else time.monotonic() + 60 + 20 * seconds  # one that sleeps for ever
    with os.fdopen(read, "rb") as pipe:
        while True:
            left = None if limit is None else max(0.0, limit - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                os.kill(pid, signal.SIGKILL)
                break
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            data += chunk
    os.waitpid(pid, 0)
    return json.loads(data) if data else None


def as_calls(told: dict[str, Any]) -> Calls:
    """What `_calls_of` told, as it came through the pipe."""
    return Calls(
        {test: seconds for test, (seconds, _) in told.items()},
        {test: {tuple(function) for function in functions} for test, (_, functions) in told.items()},
    )
