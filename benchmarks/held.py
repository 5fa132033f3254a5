"""held: What does the pool hold through load, idleness and memory pressure; what does reserving in advance
cost beside bare `posix_fallocate`, a broker at rest, and the longest turn of what the memory manager does?

The broker is a process of its own that reads a configuration; pressure is made by thresholds that a
reload sets, so what follows from it is what follows from a host that is short."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import shmpool

from .measure import cpu_seconds
from .memory_turns import longest_turns
from .options import Options
from .report import Bar, Column, Plot, Report, Table
from .simulated import collecting_as_the_daemon
from .units import GIB, KIB, MIB

LIMIT = 256 * MIB
#: Seconds of `buffer_lifetime`, of each phase, and between two looks.
LIFETIME, LOAD, PRESSED, LOOK = 2.0, 4.0, 3.0, 0.2
SIZES = (1000, 20 * KIB, 60 * KIB, 200 * KIB, 300 * KIB, 700 * KIB)
#: Bytes that are leased and published at a time under load, and what stays leased under pressure.
ALIVE, KEPT = 150 * MIB, 40 * MIB
GIVEN_BACK, PREALLOCATED, AT_REST, LONGEST_TURN = 0.95, 1.5, 0.01, 0.005
ROUNDS, RESTED = 5, 5.0
#: Slots that are used, left alone, and used again.
USED = 200


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    report.tables = [_phases(report), _preallocation(report, options)]
    _rest(report)
    report.tables.append(_turns(report, options))
    return report


# --- load, idleness, pressure ------------------------------------------------------------------------


@contextmanager
def _service(settings: str) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A broker, its configuration's file, and its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path, address = Path(folder) / "shmpoold.toml", f"{folder}/broker.sock"
        path.write_text(settings)
        broker = subprocess.Popen(
            [sys.executable, "-m", "shmpoold", "--config", str(path), "--socket", address],
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield broker, path, address
        finally:
            broker.terminate()
            broker.wait()


def _connect(address: str) -> shmpool.Pool:
    deadline = time.monotonic() + 30
    while True:
        try:
            return shmpool.connect(address)
        except shmpool.BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class _Course:
    """What was held when, looked at by a thread while the phases go on."""

    def __init__(self, pool: shmpool.Pool) -> None:
        self._pool = pool
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._phase = ""
        self.table = Table(
            f"memory held, limit {LIMIT // MIB} MiB, buffer_lifetime {LIFETIME:g} s",
            [Column("at", "s"), Column("phase"), Column("held", "B"), Column("asked for", "B"), Column("limit", "B")],
            plot=Plot("at", ("held", "asked for", "limit"), title="held through load, idle, load, pressure",
                      is_linear=True),
            is_grouped=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._look_on)
        self._thread.start()

    def begin(self, phase: str) -> None:
        self._phase = phase

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._is_over.wait(LOOK):
            memory = self._pool.stats().memory
            at = round(time.monotonic() - self._began, 2)
            self.table.rows.append([at, self._phase, memory["held"], memory["payload"], memory["limit"]])


def _phases(report: Report) -> Table:
    settings = f'memory_limit = "{LIMIT // MIB}MiB"\nbuffer_lifetime = "{LIFETIME:g}s"\nmagazine_idle = "200ms"\n'
    with _service(settings) as (broker, path, address), _connect(address) as pool:
        pool.lease(1).release()
        course = _Course(pool)
        try:
            course.begin("load")
            kept = _load(pool, LOAD)
            for lease in kept:
                lease.release()
            kept.clear()
            warm = pool.stats().memory
            course.begin("idle")
            time.sleep(2 * LIFETIME)
            left = pool.stats().memory
            given_back = 1 - (left["held"] - left["overhead"]) / (warm["held"] - warm["overhead"])
            report.bars.append(Bar("warm payload given back within two lifetimes", GIVEN_BACK, given_back, "%"))
            course.begin("load again")
            kept = _load(pool, LOAD)
            while sum(lease.nbytes for lease in kept) > KEPT:
                kept.pop().release()
            course.begin("pressure")
            pool.lease(1).release()
            path.write_text(settings + 'pressure_free = ["100 %", "0 %"]\n')
            broker.send_signal(signal.SIGHUP)
            time.sleep(PRESSED)
            for lease in kept:
                lease.release()
            time.sleep(PRESSED)
        finally:
            course.end()
    return course.table


def _load(pool: shmpool.Pool, seconds: float) -> list[shmpool.Lease]:
    """Lease, publish, open, and keep much alive. Returns what is leased at the end."""
    chance, ends = random.Random(7), time.monotonic() + seconds
    alive: list[shmpool.Lease] = []
    nbytes = 0
    while time.monotonic() < ends:
        lease = pool.lease(chance.choice(SIZES))
        nbytes += lease.nbytes
        alive.append(lease)
        while nbytes > ALIVE:
            oldest = alive.pop(chance.randrange(len(alive)))
            nbytes -= oldest.nbytes
            pool.open(oldest.publish()).release()
        time.sleep(0.001)
    return alive


def _rest(report: Report) -> None:
    """Clients stay attached: what a broker takes of a core then, and whether they map anything anew when
    they use as much again."""
    settings = f'memory_limit = "{LIMIT // MIB}MiB"\nbuffer_lifetime = "{LIFETIME:g}s"\nmagazine_idle = "200ms"\n'
    with _service(settings) as (broker, _, address), _connect(address) as pool, _connect(address):
        _use(pool)
        maps = _maps()
        time.sleep(2 * LIFETIME)
        before, began = cpu_seconds(broker.pid), time.monotonic()
        time.sleep(RESTED)
        rest = (cpu_seconds(broker.pid) - before) / (time.monotonic() - began)
        _use(pool)
        report.bars += [
            Bar("the broker at rest, of a core", AT_REST, rest, "%", is_most=True),
            Bar("maps made anew after it", 0, len(_maps() - maps), "count", is_most=True),
        ]


def _use(pool: shmpool.Pool) -> None:
    leases = [pool.lease(60 * KIB) for _ in range(USED)]
    for lease in leases:
        lease.view[:1] = b"u"
        lease.release()


def _maps() -> set[str]:
    """Where this process has tiers mapped."""
    return {line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "-tier" in line}


# --- turns -----------------------------------------------------------------------------------------


def _turns(report: Report, options: Options) -> Table:
    best: dict[str, float] = {}
    for _ in range(options.rounds or ROUNDS):
        with collecting_as_the_daemon():
            for kind, took in longest_turns():
                best[kind] = min(took, best.get(kind, took))
    table = Table("the longest turn, CPU seconds of the core, 8 GiB with max_buffer_age 1 s and preallocation", [
        Column("what happens"), Column("longest turn", "s"),
    ])  # fmt: skip
    table.rows += [[kind, took] for kind, took in best.items()]
    report.bars += [Bar(f"{kind}: longest turn", LONGEST_TURN, took, "s", is_most=True) for kind, took in best.items()]
    return table


# --- preallocation ---------------------------------------------------------------------------------


def _preallocation(report: Report, options: Options) -> Table:
    table = Table(
        "1 GiB of 64 KiB slots reserved before the broker is ready",
        [Column("round", "count"), Column("start without", "s"), Column("start with", "s"),
         Column("posix_fallocate", "s"), Column("ratio", "x")],
    )  # fmt: skip
    ratios: list[float] = []
    for number in range(options.rounds or ROUNDS):
        without, bare = _seconds(_start), _seconds(_fallocate)
        whole = _seconds(lambda: _start(allocation_strategy="preallocate", preallocate={"64KiB": "50%"}))
        ratios.append((whole - without) / bare)
        table.rows.append([number, without, whole, bare, ratios[-1]])
    report.bars.append(
        Bar("preallocating 1 GiB to posix_fallocate", PREALLOCATED, statistics.median(ratios), is_most=True,
            spread=(min(ratios), max(ratios)))
    )  # fmt: skip
    return table


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _start(**settings: object) -> None:
    """Until it is ready; that it ends is not timed by much, and the same with and without."""
    with shmpool.Broker(memory_limit=2 * GIB, **settings):  # type: ignore[arg-type]
        pass


def _fallocate() -> None:
    path = f"/dev/shm/bare-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, GIB)
    finally:
        os.unlink(path)
        os.close(fd)
