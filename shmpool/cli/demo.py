"""``shmpool demo``: the main job on real files, shown.

The job itself is `shmpool.demo`; here are its options, the progress bar and the tables.
"""

from __future__ import annotations

import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..demo.crew import CrewFailed
from ..demo.files import Corpus, Trouble, scan
from ..demo.handover import Way
from ..demo.job import POOL, QUEUE, Job, Report, Timed, processors
from ..protocol.sizing import MIB, SizeCategory, format_bytes
from ..system import memory
from .look import console, count, duration, number, printable, table
from .sizes import size

_DEFAULT_LIMIT: Final = 256 * MIB
#: Of the default corpus: what was installed into the Python library and is not part of it.
_LEFT_OUT: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
#: Names shown for each kind of trouble, unless all are asked for.
_SHOWN_NAMES: Final = 10
#: A corpus with less of both tells how fast processes start, not how fast objects pass.
_TELLING_FILES, _TELLING_BYTES = 100, MIB
#: Below this, in seconds, the processors' times are too coarse to be compared.
_TELLING_CPU: Final = 0.1
_MAX_WORKERS: Final = 8


@click.command("demo", short_help="Pass real files between processes, through a pool.")
@click.argument("path", required=False, type=click.Path(exists=True))
@click.option("--memory-limit", type=size, metavar="SIZE", help="The pool's memory.  [default: 256MiB, or what fits]")
@click.option("--readers", type=click.IntRange(1, 64), default=2, help="Processes that read files.  [default: 2]")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that digest.  [default: one a processor]")
@click.option("--no-compare", is_flag=True, help="Leave multiprocessing.Queue out.")
@click.option("-v", "--verbose", is_flag=True, help="Name every file that is left out.")
def command(
    path: str | None, memory_limit: int | None, readers: int, workers: int | None, no_compare: bool, verbose: bool
) -> None:
    """Pass every file below PATH through a pool, between real processes, and check it.

    Readers put files into shared buffers, workers compute SHA-256 and BLAKE2b from them
    without a copy, and each digest is compared with one computed from the file itself.
    PATH is the Python installation's own library if it is not given.

    Exit status 0: every digest of an unchanged file matched.
    """
    out = console()
    corpus = _find_files(out, path)
    workers = workers or max(2, min(_MAX_WORKERS, processors()))
    limit = memory_limit or _fitting_limit(out)
    crew = f"{count(readers, 'reader')} and {count(workers, 'worker')}"
    out.print(f"{crew}, a private broker with {format_bytes(limit)}\n")
    is_telling = len(corpus.paths) >= _TELLING_FILES or corpus.nbytes >= _TELLING_BYTES
    signal.signal(signal.SIGTERM, _on_terminate)
    with _progress(out, corpus) as advance:
        try:
            report = Job(corpus, limit, readers, workers, advance).run(compare=is_telling and not no_compare)
        except CrewFailed as error:
            raise click.ClickException(str(error)) from error
    show(out, report, all_names=verbose, has_times=is_telling)
    sys.exit(0 if report.ok else 1)


def _find_files(out: Console, path: str | None) -> Corpus:
    root = path if path is not None else sysconfig.get_path("stdlib")
    corpus = scan(root, frozenset() if path is not None else _LEFT_OUT)
    line = Text(f"{count(len(corpus.paths), 'file')}, {format_bytes(corpus.nbytes)}, in ") + printable(root)
    if path is None:
        line.append(f"\nwithout {', '.join(sorted(_LEFT_OUT))}; name a PATH to take everything below it")
    out.print(line)
    return corpus


def _fitting_limit(out: Console) -> int:
    """The default, or what this host leaves of it, as a private broker would: /dev/shm is small in
    many containers."""
    place = memory.tightest_place(memory.limiting_places(memory.memory_groups()))
    limit = memory.fitting_limit(_DEFAULT_LIMIT, place)
    if place is not None and limit < _DEFAULT_LIMIT:
        text = f"{place}, so the pool is smaller than the usual {format_bytes(_DEFAULT_LIMIT)}; to have that: "
        out.print(Text(text + place.fix(_DEFAULT_LIMIT), style="yellow"), soft_wrap=True)
    return limit


def _on_terminate(signum: int, frame: object) -> NoReturn:
    """End in order, so that no process is left behind."""
    sys.exit(128 + signum)


@contextmanager
def _progress(out: Console, corpus: Corpus) -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        yield _Bars(progress, corpus.nbytes)


class _Bars:
    """A bar for each part of the job, made when it begins."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, nbytes: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=self._total)
        self._progress.advance(self._tasks[what], nbytes)


# --- the report ------------------------------------------------------------------------------


def show(out: Console, report: Report, *, all_names: bool, has_times: bool = True) -> None:
    """Print all of it: what was left out first, the verdict last. Without times where there was so
    little to do that they would say nothing."""
    for trouble, paths in report.troubles.items():
        _show_names(out, trouble, paths, all_names=all_names)
    if report.verified:
        out.print(_categories(report, has_times=has_times))
    if has_times:
        _show_speed(out, report)
        _show_hand_over(out, report)
    elif report.verified:
        least = f"{number(_TELLING_FILES)} files or {format_bytes(_TELLING_BYTES)}"
        out.print(f"Too little to say how fast it is: that takes {least}.")
    _show_failures(out, report)


def _show_names(out: Console, trouble: Trouble, paths: list[str], *, all_names: bool) -> None:
    if not paths:
        return
    told = f"{count(len(paths), 'file')} left out, {trouble.value}"
    if trouble is Trouble.EMPTY and len(paths) > 1 and not all_names:
        out.print(f"{told}; --verbose names them", style="yellow")
        return
    out.print(f"{told}:", style="yellow")
    shown = paths if all_names else paths[:_SHOWN_NAMES]
    for path in shown:
        out.print(Text("  ") + printable(path), soft_wrap=True)
    if len(shown) < len(paths):
        out.print(f"  and {number(len(paths) - len(shown))} more; --verbose names all")


def _categories(report: Report, *, has_times: bool) -> object:
    columns = ("lease to release>", "reading>", "digests>") if has_times else ()
    title = "Through shmpool" + (", median time per object" if has_times else "")
    shown = table(title, "size", "files>", "bytes>", "strategy", *columns)
    for line in report.lines.values():
        if line.files:
            timed = (line.pool_ns, line.file_ns, line.digest_ns) if has_times else ()
            times = (duration(median(ns) / 1e9) for ns in timed)
            strategies = ", ".join(sorted(strategy.value for strategy in line.strategies))
            name = line.category.value.replace("_", " ")
            shown.add_row(name, number(line.files), format_bytes(line.nbytes), strategies, *times)
    return shown


def _show_speed(out: Console, report: Report) -> None:
    passes = [(POOL, report.pool)] + ([(QUEUE, report.queue)] if report.queue else [])
    shown = table(
        "Reading, hand-over and digests" + (", twice" if report.queue else ""),
        "",
        "seconds>",
        "files/s>",
        "MiB/s>",
        "cpu seconds>",
    )
    for name, timed in passes:
        rates = (_rate(_per_second(timed)), _rate(timed.rate / MIB))
        shown.add_row(name, f"{timed.seconds:.2f}", *rates, f"{timed.cpu_seconds:.2f}")
    if report.pool.files:
        out.print(shown)
    if report.queue and report.queue.seconds and report.pool.seconds:
        ratio = report.queue.seconds / report.pool.seconds
        told = f"most of that is reading and digests: through shmpool all is {ratio:.2f} times as fast"
        if min(report.pool.cpu_seconds, report.queue.cpu_seconds) >= _TELLING_CPU:
            told += f", for {report.pool.cpu_seconds / report.queue.cpu_seconds:.0%} of the processor time"
        out.print(told)
    elif report.queue_failure:
        out.print(Text(f"no comparison: {report.queue_failure}", style="yellow"))
    if report.slot_leases >= _TELLING_FILES:
        share = report.hits / report.slot_leases
        out.print(f"{share:.1%} of {number(report.slot_leases)} slot leases needed no message to the broker")


def _show_hand_over(out: Console, report: Report) -> None:
    """What the pool is for, without what the files and their digests cost."""
    if report.hand_over_failure:
        out.print(Text(f"no hand-over alone: {report.hand_over_failure}", style="yellow"))
    lines = [report.hand_over[category] for category in SizeCategory if category in report.hand_over]
    shown = table(
        "The hand-over alone, median time from one process to the other", "size", "files>", "bytes>",
        *(f"{way.value}>" for way in Way), "ratio>",
    )  # fmt: skip
    ratios = []
    for line in lines:
        ours, theirs = (median(line.times[way]) for way in Way)
        ratios.append((theirs / ours, line.category.value.replace("_", " ")))
        times = duration(ours / 1e9), duration(theirs / 1e9)
        shown.add_row(ratios[-1][1], number(line.files), format_bytes(line.nbytes), *times, f"{ratios[-1][0]:.1f}")
    if lines:
        out.print(shown)
        (least, of_least), (most, of_most) = min(ratios), max(ratios)
        told = (
            f"{most:.1f} ({of_most}) times"
            if least == most
            else f"{least:.1f} ({of_least}) to {most:.1f} ({of_most}) times"
        )
        out.print(
            f"ratio: objects are at the other process {told} as fast over {Way.POOL.value} as over {Way.QUEUE.value}"
        )


def _rate(value: float) -> str:
    return number(value) if value >= 10 else f"{value:.2g}"


def _per_second(timed: Timed) -> float:
    return timed.files / timed.seconds if timed.seconds else 0.0


def _show_failures(out: Console, report: Report) -> None:
    for casualty in report.casualties:
        out.print(Text(casualty, style="red"))
    for path in report.mismatched:
        out.print(Text("wrong digest: ", style="red") + printable(path), soft_wrap=True)
    for path, why in report.lost:
        out.print(Text(f"not verified ({why}): ", style="red") + printable(path), soft_wrap=True)
    verified = f"{count(report.verified, 'file')} verified"
    if not report.ok:
        out.print(f"{verified}, {number(len(report.mismatched) + len(report.lost))} not", style="red")
    elif report.verified:
        out.print(f"{verified}: SHA-256 and BLAKE2b of each are those of the file itself", style="green")
    else:
        out.print("Nothing to verify: no file has anything in it that could be read.", style="yellow")
