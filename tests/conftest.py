"""What every test here lives under: names and sockets that no other run sees, a broker that is
checked when it ends, and nothing left behind: no segments in /dev/shm, no processes, no descriptors.

Markers: ``broker(**settings)`` configures the `broker` fixture; ``keeps_buffers`` says
that the test means to leave buffers out when its pools are closed; ``long`` says that it is of the
long setting, ``pytest -m long``, and not of the default one; ``exhaustive`` that it takes minutes and is of
neither, ``pytest -m exhaustive``.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Else each of hundreds of processes would compile shmpool, and each worker of each run the tests, in seven seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import preloaded  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from patience import settle  # noqa: E402

#: Characters of TMPDIR: pytest's folder of a test, with its worker's and its user's name, has 80 more, and a socket's
#: path at most 107. Build servers make longer ones.
MOST_OF_TMPDIR = 20
if len(tempfile.gettempdir()) > MOST_OF_TMPDIR:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

#: Of this process: each worker of pytest-xdist has its own. Its path must leave room for a socket's name.
RUNTIME = tempfile.mkdtemp(prefix="shmpool-tests-")
# Before shmpool is imported. All that a test starts inherits it.
os.environ["SHMPOOL_PREFIX"] = f"test_{secrets.token_hex(6)}"
os.environ["XDG_RUNTIME_DIR"] = RUNTIME
os.environ["SHMPOOL_SOCKET"] = f"{RUNTIME}/nobody.sock"

# Each broker's interpreter would read what all installed packages have to say, a tenth of its imports.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# What multiprocessing's server forks has imported most of what it imports. (Its path is not that of the tests.)
multiprocessing.set_forkserver_preload(["shmpool", "shmpool.demo.job"])

import shmpool  # noqa: E402
from shmpool import launch  # noqa: E402
from shmpool.protocol.names import PREFIX  # noqa: E402
from shmpool.stats import query, query_invariants  # noqa: E402

_ensure_running = forkserver.ForkServer.ensure_running


def _ensure_running_unmasked(self: forkserver.ForkServer) -> None:
    """What it forks for later tests inherits the mask of who started it, and the demo holds Ctrl-C back meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        _ensure_running(self)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


pytest_plugins = ["cpu"]
forkserver.ForkServer.ensure_running = _ensure_running_unmasked  # type: ignore[method-assign]
launch.subprocess = preloaded.standin  # type: ignore[assignment]

SHM = "/dev/shm"
#: Bytes of it that some broker of the tests may take. Containers have 64 MiB, if nothing is said.
NEEDED = 1 << 30
#: Seconds for a whole test of these settings; pyproject.toml has the default's.
TIMEOUTS = {"exhaustive": 7200, "long": 900}
#: Helpers of multiprocessing that live as long as the process.
STAYING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", preloaded.MARK)

#: The module at whose first test the collector was last told what stays.
FROZEN_FOR = pytest.StashKey[Path]()

# A busy machine makes an example slow, and no example wrong.
settings.register_profile("shmpool", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shmpool")


def pytest_configure(config: pytest.Config) -> None:
    if (free := shutil.disk_usage(SHM).free) < NEEDED:
        raise pytest.UsageError(
            f"the tests need {NEEDED >> 20} MiB in {SHM}, and {free >> 20} MiB are free: make room,"
            f" or mount -o remount,size=2G {SHM} (containers: --shm-size=2g)"
        )
    config.addinivalue_line("markers", "broker(**settings): settings of the broker fixture")
    config.addinivalue_line("markers", "keeps_buffers: this test leaves buffers out on purpose")
    config.addinivalue_line("markers", "fresh: brokers and commands are new interpreters, not forks of one that waits")
    config.addinivalue_line("markers", "long: much of a kind, run by pytest -m long")
    config.addinivalue_line("markers", "exhaustive: all of a kind, for minutes each, run by pytest -m exhaustive")
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:  # inherited: a shell's background, nohup
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_unconfigure() -> None:
    preloaded.nurseries.close()
    shutil.rmtree(RUNTIME, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module that was never imported is compiled by one worker, and the others wait for it."""
    folder = collector.path.parent
    if not isinstance(collector, pytest.Module) or any(folder.glob(f"__pycache__/{collector.path.stem}.*-pytest-*")):
        return (yield)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)
    finally:
        os.close(lock)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is exhaustive is not long, though its module or another of its parameters makes it so as well."""
    is_left = {id(item) for item in items if config.option.markexpr == "long" and item.get_closest_marker("exhaustive")}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in is_left])
    items[:] = [item for item in items if id(item) not in is_left]
    for item in items:
        setting = next((name for name in TIMEOUTS if item.get_closest_marker(name)), None)
        if setting and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUTS[setting]))


def pytest_collection_finish() -> None:
    _freeze()


def _freeze() -> None:
    """What is there now stays: collections, those that tests ask for at each place that they interrupt, need not look
    through half a million objects of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.session.stash.get(FROZEN_FOR, None) != item.path:  # of another module nothing is in use, but its imports
        item.session.stash[FROZEN_FOR] = item.path
        _freeze()
    preloaded.nurseries.is_open = item.get_closest_marker("fresh") is None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """A tracer that raises where an ``except`` is about to be left has its exception handled for ever, by whatever
    comes in this thread: it would be the context of what later tests raise. (A signal handler cannot come there.)"""
    if sys.exc_info()[1] is not None:
        ctypes.pythonapi.PyErr_SetHandledException(ctypes.py_object(None))


# --- nothing is left behind ----------------------------------------------------------------------


class Traces(NamedTuple):
    """What a process can leave behind."""

    segments: set[str]
    processes: set[int]
    descriptors: set[int]


def _traces() -> Traces:
    segments = {name for name in os.listdir(SHM) if name.startswith(PREFIX)}
    return Traces(segments, set(_children(os.getpid())), _descriptors())


def _children(pid: int) -> Iterator[int]:
    """All below a process, living or not yet waited for. (Every process of the host would have to be
    read to find them by their parents, before and after each test.)"""
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    yield int(child)
                    yield from _children(int(child))


def _descriptors() -> set[int]:
    # As long as the process that is forked, multiprocessing's and ours.
    staying = {getattr(forkserver._forkserver, "_forkserver_alive_fd", None), *preloaded.nurseries.descriptors}
    return {int(name) for name in os.listdir("/proc/self/fd")} - staying


def _leaks(before: Traces) -> list[str]:
    now = _traces()
    leaks = [f"segment {name}" for name in sorted(now.segments - before.segments)]
    leaks += [f"process {_line(pid)}" for pid in sorted(now.processes - before.processes) if not _stays(_line(pid))]
    opened = [fd for fd in sorted(now.descriptors - before.descriptors) if os.path.lexists(f"/proc/self/fd/{fd}")]
    leaks += [f"descriptor {fd} of {_target(fd)}" for fd in opened]  # but the one by which they were looked at
    return leaks


def _line(pid: int) -> str:
    """A process and its command line; that of a zombie is empty."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    return ""


def _stays(line: str) -> bool:
    return not line or any(word in line for word in STAYING)


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "(closed meanwhile)"


@pytest.fixture(scope="session", autouse=True)
def _resource_tracker() -> None:
    """Started before anything is counted: it stays, with its pipe."""
    resource_tracker.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def _no_segments_at_the_end() -> Iterator[None]:
    """Not of a module's fixtures either."""
    yield
    assert settle(lambda: _traces().segments) == set()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = _traces()
    yield
    if _leaks(before):
        gc.collect()
        assert settle(lambda: _leaks(before)) == []


# --- a broker of the test's own --------------------------------------------------------------------


class CheckedBroker(shmpool.Broker):
    """A real private broker that remembers the pools made by `connect`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.pools: list[shmpool.Pool] = []

    def connect(self, **options: Any) -> shmpool.Pool:
        self.pools.append(super().connect(**options))
        return self.pools[-1]

    def check(self, *, keeps_buffers: bool) -> None:
        """Close the pools; then everything has come back, and the broker's invariants hold."""
        for pool in self.pools:
            pool.close()
        if not keeps_buffers:
            assert settle(lambda: query(self.address).active_buffers) == 0, "buffers did not come back"
        assert query_invariants(self.address) is None
        stats = query(self.address)
        assert stats.memory["overhead"] <= stats.memory["held"] <= stats.memory["limit"]
        assert not [alert for alert in stats.alerts if "quarantine" in alert]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[CheckedBroker]:
    marker = request.node.get_closest_marker("broker")
    settings = {"memory_limit": "64MiB", "max_clients": 64, **(marker.kwargs if marker else {})}
    with CheckedBroker(**settings) as broker:
        yield broker
        if broker.is_running():
            broker.check(keeps_buffers=request.node.get_closest_marker("keeps_buffers") is not None)


@pytest.fixture
def pool(broker: CheckedBroker) -> shmpool.Pool:
    return broker.connect()
