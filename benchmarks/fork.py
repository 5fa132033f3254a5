"""fork: What do the hooks cost a process that forks with a pool, and what does its child copy?

One process forks now with the hooks and now without them: the maps, the modules and the objects are the same, so the
difference is what is done for the child. With nothing in use, and with something leased and something open for
reading. Most of it are pages: each that is looked at after a fork is copied by the kernel. What is left to whoever
opens, releases or looks next is not counted: the first open behind a fork takes some 0.5 ms. Then a process with many
objects and a pool, beside one that has a thread of its own instead, and never imported shmpool."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Final

import shmpool

from . import measure
from .options import Options
from .report import Bar, Column, Report, Table
from .trees import ROOT
from .units import MIB

ROUNDS: Final = 7
FORKS: Final = 250
#: What the hooks may take, in seconds.
MOST: Final = 20e-6
#: Objects in the large process, what its child may copy more than a bare one, and how much longer the fork may take.
OBJECTS: Final = 700_000
MOST_COPIED: Final = MIB
MOST_LATER: Final = 0.020
STATES: Final = ("nothing in use", "something leased", "something open")

_PROGRAM: Final = """
import os, random, statistics, sys, time
address, state, forks = sys.argv[1:]
register, is_hooked = os.register_at_fork, [True]
def switched(hook):
    def run():
        if is_hooked[0]:
            hook()
    return run
def register_switched(**hooks):
    if sys._getframe(1).f_globals["__name__"].startswith("shmpool"):
        hooks = {when: switched(hook) for when, hook in hooks.items()}
    register(**hooks)
os.register_at_fork = register_switched
import shmpool
pool = shmpool.connect(address)
pool.lease(5000).release()
if state != "nothing in use":
    thing = pool.lease(5000)
    if state == "something open":
        thing = pool.open(thing.publish())
took = {True: [], False: []}
for _ in range(2 * int(forks)):
    is_hooked[0] = random.random() < 0.5  # by turns they would meet the same core
    started = time.perf_counter()
    pid = os.fork()
    if not pid:
        os._exit(0)
    took[is_hooked[0]].append(time.perf_counter() - started)
    os.waitpid(pid, 0)
    time.sleep(0.001)
# The first quarter: what others do on the machine only ever makes one take longer.
print(*(statistics.quantiles(took[which], n=4)[0] for which in (False, True)))
os._exit(0)
"""

_LARGE: Final = """
import logging, os, select, sys, threading, time
heap = [[number] for number in range(int(sys.argv[3]))]
if sys.argv[2] == "without":
    threading.Thread(target=select.poll().poll, daemon=True).start()
    time.sleep(0.1)
else:
    import shmpool
    pool = shmpool.connect(sys.argv[1])
    lease, other = pool.lease(5000), pool.lease(5000)
    buffer = pool.open(other.publish())
reading, writing = os.pipe()
started = time.perf_counter()
pid = os.fork()
if not pid:
    took = time.perf_counter() - started
    with open("/proc/self/smaps_rollup") as file:
        dirty = next(int(line.split()[1]) << 10 for line in file if line.startswith("Private_Dirty"))
    os.write(writing, f"{dirty} {took}".encode())
    os._exit(0)
os.waitpid(pid, 0)
print(os.read(reading, 100).decode(), flush=True)
os._exit(0)
"""


def comparisons(options: Options) -> int:
    return len(STATES) + 1


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    rounds = options.rounds or ROUNDS
    with shmpool.Broker(memory_limit="16MiB") as broker:
        _hooks(report, broker.address, rounds)
        _large(report, broker.address, rounds)
    return report


def _hooks(report: Report, address: str, rounds: int) -> None:
    table = Table(
        "a fork, in the parent",
        [Column("with"), Column("without hooks", "s"), Column("with them", "s"), Column("more", "s")],
    )
    report.tables.append(table)
    for state in STATES:
        pairs = [
            [float(word) for word in _run(_PROGRAM, address, state, str(FORKS)).split()]
            for _ in measure.pace.turns(rounds)
        ]
        more = statistics.median(ours - bare for bare, ours in pairs)
        bare, ours = map(statistics.median, zip(*pairs, strict=True))
        table.rows.append([state, bare, ours, more])
        report.bars.append(Bar(f"a fork with {state}", MOST, more, "s", is_most=True))


def _large(report: Report, address: str, rounds: int) -> None:
    figures: dict[str, list[list[float]]] = {"without": [], "with": []}
    for _ in measure.pace.turns(rounds):
        for how, found in figures.items():
            found.append([float(word) for word in _run(_LARGE, address, how, str(OBJECTS)).split()])
    medians = {how: [statistics.median(one) for one in zip(*found, strict=True)] for how, found in figures.items()}
    report.tables.append(
        Table(
            f"a process with {OBJECTS:,} lists forks",
            [Column("shmpool"), Column("its child copies", "B"), Column("the fork takes", "s")],
            [[how, *medians[how]] for how in figures],
        )
    )
    copied, later = (ours - bare for bare, ours in zip(medians["without"], medians["with"], strict=True))
    report.bars += [
        Bar("copied more than by a bare fork", MOST_COPIED, copied, "B", is_most=True),
        Bar("longer than a bare fork", MOST_LATER, later, "s", is_most=True),
    ]


def _run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
