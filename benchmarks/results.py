"""`python -m benchmarks results`: RESULTS.md and its plots anew, by one command, on a machine that does nothing else.

Each benchmark is a process of its own, with fewer sizes than by itself where it would take long, and has its part of
the time that is left: what one does not need the next ones have. Where that is too little it makes fewer rounds, one at
least, and says so; one that does not end even so has what it measured until then, and that the rest is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from . import report as reports
from .render import console, markdown
from .report import CUT_OFF, Report

#: In this order, and how each is asked; what is left out has no table that others would compare with.
PARTS: dict[str, tuple[str, ...]] = {
    "cycle": (),
    "memcpy": (),
    "messages": (),
    "footprint": (),
    "fork": (),
    "broker": (),
    "strategies": ("--sizes", "4KiB,64KiB,256KiB,512KiB,1MiB,2MiB,10MiB"),
    "streams": (),
    "queue": (),
    "objects": (),
    "handoff": ("--sizes", "1KiB,4KiB,16KiB,64KiB,256KiB,1MiB"),
    "stream": ("--sizes", "1KiB,4KiB,16KiB,64KiB,256KiB,512KiB,1MiB,4MiB,10MiB"),
}
#: Of the time: for those that have all peers beside them, or objects of many megabytes.
WEIGHTS = {
    "footprint": 2.0,
    "fork": 2.0,
    "broker": 3.0,
    "stream": 12.0,
    "handoff": 5.0,
    "objects": 3.0,
    "queue": 3.0,
    "streams": 2.0,
    "strategies": 2.0,
}
MINUTES = 20.0
#: Of its part of the time, what a benchmark is told to end within.
PACE = 0.8
#: Seconds in which what was interrupted says what it has, and removes what it has made.
GRACE = 45.0

_HEAD = """# One run

Printed by `python -m benchmarks results`, with nothing else on the machine: each benchmark in a process of its own,
with fewer sizes and rounds than by itself. How to read it, and what not to conclude, is in [README.md](README.md).
Plain and compiled clients stand side by side where a table names both; elsewhere the line below a question says which.
"""


def write(folder: Path, minutes: float, names: Collection[str] = tuple(PARTS)) -> bool:
    """Run those that are named and write RESULTS.md and the plots into *folder*; whether all bars are met."""
    lines, is_met, ends = [_HEAD], True, time.monotonic() + minutes * 60
    left = [one for one in PARTS if one in names]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shmpool-results-") as scratch:
        while left:
            of_all = sum(WEIGHTS.get(one, 1.0) for one in left)
            name = left.pop(0)
            seconds = max(1.0, (ends - time.monotonic()) * WEIGHTS.get(name, 1.0) / of_all)
            written = Path(scratch, f"{name}.json")
            with console.status(f"{name}, {seconds:.0f} s at most"):
                failure = _run(name, PARTS[name], written, seconds)
            if failure is not None:
                is_met = False
                lines.append(f"### {name}\n\n{failure}\n")
            for one in reports.read(written) if failure is None else ():
                is_met &= one.is_met and CUT_OFF not in one.absent
                lines.append(markdown(one, picture=_plot(one, folder)))
            # After each: who ends it keeps what there is.
            Path(folder, "RESULTS.md").write_text("\n".join(line.rstrip("\n") + "\n" for line in lines))
    return is_met


def _run(name: str, arguments: tuple[str, ...], written: Path, seconds: float) -> str | None:
    """Why there is no report; None where there is one."""
    command = [sys.executable, "-m", "benchmarks", name, *arguments]
    command += ["--within", f"{PACE * seconds:.0f}" if seconds > 2 else "1", "--json", str(written)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        told = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        for number in (signal.SIGINT, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                process.communicate(timeout=GRACE)
                break
            except subprocess.TimeoutExpired:
                continue
        return None if written.exists() else f"It did not end within its {seconds:.0f} s."
    if written.exists():
        return None
    return f"It ended with status {process.returncode}: {_last_line(told)}"


def _last_line(text: str) -> str:
    lines: Iterator[str] = (line for line in reversed(text.splitlines()) if line.strip())
    return next(lines, "it said nothing")


def _plot(report: Report, folder: Path) -> str | None:
    """The picture's path from RESULTS.md; None where there is nothing to plot, or nothing to plot with."""
    if not report.has_plot:
        return None
    try:
        from .plot import plot
    except ImportError:
        return None
    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    plot(report, pictures / f"{report.name}.png")
    return f"plots/{report.name}.png"
