"""`python -m benchmarks results`: RESULTS.md and its plots anew, by one command, on a machine that does nothing else.

Each benchmark is a process of its own, with fewer sizes and rounds than by itself where it would take long, and has so
much time at most that all of them together end in time. One that does not is named, and what it would have shown is not
there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from . import report as reports
from .render import console, markdown
from .report import Report

#: In this order, and how each is asked; what is left out has no table that others would compare with.
PARTS: dict[str, tuple[str, ...]] = {
    "cycle": (),
    "stream": ("--sizes", "1KiB,4KiB,64KiB,256KiB,512KiB,1MiB,4MiB,10MiB", "--rounds", "3"),
    "handoff": ("--sizes", "1KiB,4KiB,16KiB,64KiB,256KiB,1MiB", "--rounds", "3"),
    "strategies": ("--rounds", "3"),
    "memcpy": (),
    "messages": (),
    "footprint": (),
    "fork": (),
    "broker": ("--rounds", "3"),
    "streams": ("--rounds", "3"),
    "objects": ("--rounds", "3"),
    "queue": ("--rounds", "3"),
}
#: Of the time, for the two that have all peers beside them.
WEIGHTS = {"stream": 3.0, "handoff": 2.0}
MINUTES = 12.0
#: Seconds in which what was interrupted removes what it has made.
GRACE = 5.0

_HEAD = """# One run

Printed by `python -m benchmarks results`, with nothing else on the machine: each benchmark in a process of its own,
with fewer sizes and rounds than by itself. How to read it, and what not to conclude, is in [README.md](README.md).
Plain and compiled clients stand side by side where a table names both; elsewhere the line below a question says which.
"""


def write(folder: Path, minutes: float, names: Collection[str] = tuple(PARTS)) -> bool:
    """Run those that are named and write RESULTS.md and the plots into *folder*; whether all bars are met."""
    lines, is_met = [_HEAD], True
    with tempfile.TemporaryDirectory(prefix="shmpool-results-") as scratch:
        for name in (one for one in PARTS if one in names):
            seconds = minutes * 60 * WEIGHTS.get(name, 1.0) / sum(WEIGHTS.get(one, 1.0) for one in names)
            written = Path(scratch, f"{name}.json")
            with console.status(f"{name}, {seconds:.0f} s at most"):
                failure = _run(name, PARTS[name], written, seconds)
            if failure is not None:
                is_met = False
                lines.append(f"### {name}\n\n{failure}\n")
            for one in reports.read(written) if failure is None else ():
                is_met &= one.is_met
                lines.append(markdown(one, picture=_plot(one, folder)))
    Path(folder, "RESULTS.md").write_text("\n".join(line.rstrip("\n") + "\n" for line in lines))
    return is_met


def _run(name: str, arguments: tuple[str, ...], written: Path, seconds: float) -> str | None:
    """Why there is no report; None where there is one."""
    command = [sys.executable, "-m", "benchmarks", name, *arguments, "--json", str(written)]
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
        return f"It did not end within its {seconds:.0f} s."
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
