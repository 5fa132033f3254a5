"""restart: How soon are all clients served again when the broker was killed and another takes its pool over?

Real processes, each with a seat, one lease that it holds and one that it waits for: the
broker has to grant it. Each round kills the broker, lets it be away for a while (clients look for it more
and more rarely), starts the next one and counts from when that says it is ready. What the
processes need to wake up and ask is in the figure: on few cores it is most of it. So it is told what CPU
time the broker and its clients took for it, and what others on this host took meanwhile."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

import shmpool

from .crew import Answer, Crew
from .measure import cpu_seconds
from .misses import SETTINGS
from .options import Options
from .report import Bar, Column, Report, Table
from .units import KIB, MIB

CLIENTS = 500
#: Seconds for which there is no broker.
AWAY = (0.0, 1.0, 5.0)
ROUNDS = 3
NBYTES = 4 * KIB
#: Seconds for the start of a broker, and for a lease after it.
PATIENCE = 60.0
BAR = 3.0
TICK = os.sysconf("SC_CLK_TCK")

PARAMETERS = [
    click.Option(["--clients"], type=click.IntRange(1), help=f"Processes with a seat.  [default: {CLIENTS}]"),
]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    clients, rounds = options.more.get("clients") or CLIENTS, options.rounds or ROUNDS
    table = Table(f"{clients} clients, from the broker's being ready until they have what they wait for", [
        Column("broker away", "s"), *(Column(what, "s") for what in ("first", "half", "all")),
        Column("CPU of the broker", "s"), Column("CPU of the clients", "s"), Column("CPU of others", "s"),
    ])  # fmt: skip
    report.tables.append(table)
    with TemporaryDirectory() as folder:
        broker = _Broker(str(Path(folder, "restart.sock")), clients)
        broker.start()
        try:
            with Crew(clients, lambda _place: _client(broker.address)) as crew:
                for away in AWAY:
                    rows = [_round(broker, crew, away) for _ in range(rounds)]
                    figures = [median(column) for column in zip(*rows, strict=True)]
                    table.rows.append([away, *figures])
                    bar = f"{clients} clients served again after {away:.0f} s"
                    report.bars.append(Bar(bar, BAR, figures[2], "s", is_most=True))
        finally:
            broker.end()
    return report


def _round(broker: _Broker, crew: Crew, away: float) -> tuple[float, ...]:
    ready, began = 0.0, 0.0
    spent, pids = 0.0, [process.pid or 0 for process in crew.processes]

    def restart() -> None:
        nonlocal ready, began, spent
        time.sleep(away)
        spent = cpu_seconds(*pids)
        broker.start()
        ready, began = time.perf_counter(), _busy_seconds()

    broker.kill()
    served = sorted(crew.ask(PATIENCE + away, meanwhile=restart))
    host, own = _busy_seconds() - began, cpu_seconds(broker.pid)
    clients = cpu_seconds(*pids) - spent
    crew.ask(None)
    first, half, last = (max(0.0, served[at] - ready) for at in (0, len(served) // 2, -1))
    return first, half, last, own, clients, max(0.0, host - own - clients)


@contextmanager
def _client(address: str) -> Iterator[Answer]:
    """Asked with a timeout, it leases and says when it had it; asked with None, it gives that back."""
    with shmpool.Pool(address, timeout=PATIENCE) as pool:
        pool.lease(NBYTES)
        held = [pool.lease(NBYTES)]

        def answer(timeout: float | None) -> float:
            if timeout is None:
                for lease in held:
                    lease.release()
                pool._session.return_all()
                held[:] = [pool.lease(NBYTES)]
            else:
                held.append(pool.lease(NBYTES, timeout=timeout))
            return time.perf_counter()

        yield answer


class _Broker:
    """`shmpoold` at one address; its pool outlives it."""

    def __init__(self, address: str, clients: int) -> None:
        self.address = address
        self._settings = json.dumps(
            {
                "memory_limit": 256 * MIB,
                "max_clients": clients + 16,
                "log_level": "error",
                "on_stop": "remove",
                **SETTINGS,
            }
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start one and wait until it serves."""
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "shmpoold", "--socket", self.address, "--settings", self._settings]
        self._process = subprocess.Popen([*command, "--ready-fd", str(writing)], pass_fds=(writing,))
        os.close(writing)
        with open(reading, "rb") as pipe:
            poll = select.poll()  # of five hundred pipes some are beyond what select knows
            poll.register(pipe, select.POLLIN)
            if not poll.poll(PATIENCE * 1000) or not json.loads(pipe.readline() or b"{}").get("ready"):
                raise RuntimeError("the broker did not start")

    @property
    def pid(self) -> int:
        """Of the present one."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it, its pool stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _busy_seconds() -> float:
    """CPU time of all processes of this host."""
    with open("/proc/stat") as status:
        user, nice, system, *_ = map(int, status.readline().split()[1:])
    return (user + nice + system) / TICK
