"""watching: What do those who watch a broker under load cost: `shmpool top`, and a scrape of its metrics?

A broker with many clients and leases, and some that lease and read all the time. `top` runs in a
terminal of 80 columns, as it comes; its processor time is of when it has started. A scrape is a GET over
the metrics' unix socket, from the request to the last byte, twice a second: who asks without a pause waits
longer, since the broker leaves its time to others. What the stats cost the broker in a turn with
1,000 clients and 40,000 leases is in `scale` ("asked for stats: longest turn"), what metrics cost the hot
path in `cycle --detailed`."""

from __future__ import annotations

import os
import pty
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import shmpool

from .measure import cpu_seconds
from .options import Options
from .report import Bar, Column, Report, Table

#: Clients and leases: of a busy host, on which the bars are, and of a very busy one.
BUSY, VERY_BUSY = (20, 500), (100, 5_000)
SCRAPE, TOP = 0.010, 0.03
SCRAPES = 30
#: Seconds between two of them.
INTERVAL = 0.5
#: Seconds that `top` has to start, and that it is looked at.
STARTS, LOOKED_AT = 3.0, 10.0


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    columns = [
        Column("clients", "count"), Column("leases", "count"), Column("scrape", "s"), Column("the longest", "s"),
        Column("broker's CPU", "s"), Column("top, of a core", "%"),
    ]  # fmt: skip
    table = Table("under load", columns)
    for clients, leases in (BUSY, VERY_BUSY):
        took, cost, used = _watch(clients, leases, options)
        table.rows.append([clients, leases, statistics.median(took), took[-1], cost, used])
        if (clients, leases) == BUSY:
            spread = took[0], took[-1]
            report.bars.append(Bar("a scrape", SCRAPE, statistics.median(took), "s", is_most=True, spread=spread))
    report.bars.append(Bar("shmpool top, of a core", TOP, max(row[-1] for row in table.rows), "%", is_most=True))
    report.tables.append(table)
    return report


def _watch(clients: int, leases: int, options: Options) -> tuple[list[float], float, float]:
    """How long scrapes took, in order; what each cost the broker; what `top` used of a core."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = os.path.join(folder, "metrics.sock")
        settings = {"memory_limit": "256MiB", "max_clients": clients + 8, "metrics_address": metrics}
        with shmpool.Broker(**settings) as broker, _load(broker, clients, leases):
            before = cpu_seconds(broker.pid)
            took = sorted(_scrape(metrics) for _ in range(options.rounds or SCRAPES))
            cost = (cpu_seconds(broker.pid) - before) / len(took)
            return took, cost, _top(broker.address, options.seconds or LOOKED_AT)


@contextmanager
def _load(broker: shmpool.Broker, clients: int, leases: int) -> Iterator[None]:
    end = threading.Event()

    def go_on() -> None:
        with broker.connect() as pool:
            while not end.wait(0.001):
                with pool.lease(20_000) as lease:
                    handle = lease.publish()
                pool.open(handle).release()

    with ExitStack() as stack:
        pools = [stack.enter_context(broker.connect()) for _ in range(clients)]
        held = [pools[number % clients].lease(2000 + number) for number in range(leases)]
        working = threading.Thread(target=go_on)
        working.start()
        try:
            yield
        finally:
            end.set()
            working.join()
            for lease in held:
                lease.release()


def _scrape(path: str) -> float:
    time.sleep(INTERVAL)
    started = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := peer.recv(1 << 16):
            answer += piece
    took = time.perf_counter() - started
    assert answer.split(b" ", 2)[1] == b"200" and b"\nshmpool_clients " in answer, answer[:200]
    return took


def _top(address: str, seconds: float) -> float:
    """Processor seconds for each second."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shmpool", "top", "--socket", address]
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    threading.Thread(target=_read_all, args=(ours,), daemon=True).start()
    try:
        time.sleep(STARTS)
        before, began = cpu_seconds(process.pid), time.perf_counter()
        time.sleep(seconds)
        used = (cpu_seconds(process.pid) - before) / (time.perf_counter() - began)
        assert process.poll() is None, "top has ended by itself"
    finally:
        os.write(ours, b"q")
        process.wait()
    return used


def _read_all(fd: int) -> None:
    try:
        while os.read(fd, 1 << 16):
            pass
    except OSError:  # the terminal's other end is gone
        os.close(fd)
