"""``pytest --cpu 20``: what the tests cost in CPU time, which is the same on a busy machine, and the 20 dearest.

Counted is what this process used and every child that it has waited for, so a broker that several tests share is
counted where it ends. Works with pytest-xdist.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest


def _used() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class CpuTimes:
    """A plugin of each process; the one with the terminal gets all reports."""

    def __init__(self, shown: int) -> None:
        self._shown = shown
        self._before = _used()
        self._seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        before, self._before = self._before, _used()
        report.cpu = self._before - before
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] += report.cpu

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        folders: Counter[str] = Counter()
        for name, seconds in self._seconds.items():
            folders[os.path.dirname(name.partition("::")[0])] += seconds
        terminalreporter.section(f"{self._seconds.total():.0f} s of CPU time in {len(self._seconds)} tests")
        for name, seconds in (*folders.most_common(), *self._seconds.most_common(self._shown)):
            terminalreporter.line(f"{seconds:7.2f} s {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("terminal reporting").addoption(
        "--cpu", type=int, metavar="N", help="show the N tests that cost most CPU time, children counted"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu") is not None:
        config.pluginmanager.register(CpuTimes(config.getoption("--cpu")))
