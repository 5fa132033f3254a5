"""``python -m benchmarks`` lists the benchmarks, ``python -m benchmarks NAME`` runs one."""

from __future__ import annotations

import importlib
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from . import measure, results
from . import report as reports
from .options import Options
from .parameters import Names, Sizes
from .render import console, markdown, print_report
from .report import Report

#: How many comparisons a benchmark makes that does not say it.
COMPARISONS = 8

NAMES = (
    "handoff",
    "stream",
    "strategies",
    "streams",
    "cycle",
    "usual",
    "memcpy",
    "messages",
    "footprint",
    "fork",
    "broker",
    "memory",
    "objects",
    "executors",
    "queue",
    "held",
    "watching",
    "latency",
    "scale",
    "restart",
    "hostile",
    "soak",
    "gate",
)


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(["--sizes"], type=Sizes(), help="Sizes to measure, like 4KiB,1MiB."),
        click.Option(["--rounds"], type=click.IntRange(1), help="Rounds to measure."),
        click.Option(["--seconds"], type=click.FloatRange(0, min_open=True), help="Seconds for each round."),
        click.Option(["--within"], type=click.FloatRange(0, min_open=True), help="Seconds in all: fewer rounds then."),
        click.Option(["--json"], type=click.Path(dir_okay=False), help="Write the report to this file."),
        click.Option(["--plot"], type=click.Path(dir_okay=False), help="Plot it to this file (a PNG)."),
    ]


class _Benchmarks(click.Group):
    """The benchmarks as commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*NAMES, "all", "report", "results"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "all":
            return click.Command("all", params=_shared_options(), callback=_run_all, help="Run them all.")
        if name not in NAMES:
            return super().get_command(ctx, name)
        module = _module(name)

        def run(**values: Any) -> None:
            _run([name], **values)

        parameters = [*_shared_options(), *getattr(module, "PARAMETERS", ())]
        return click.Command(name, params=parameters, callback=run, help=_question(module))


@click.group(cls=_Benchmarks, invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Run a benchmark by its name, or `all`; without a name, list them."""
    if context.invoked_subcommand is None:
        width = max(len(name) for name in NAMES)
        for name in NAMES:
            console.print(f"[bold]{name:{width}}[/]  {_question(_module(name))}")


@main.command("report")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--whole", is_flag=True, help="All columns of every table.")
@click.option("--plots", type=click.Path(file_okay=False), help="Plot each report into this folder, and show it.")
def report(files: tuple[str, ...], whole: bool, plots: str | None) -> None:
    """Print JSON reports as markdown, as the README has them."""
    for one in (one for file in files for one in reports.read(file)):
        picture = None
        if plots is not None and one.has_plot:
            picture = f"{Path(plots).name}/{one.name}.png"
            _plot(one, Path(plots) / f"{one.name}.png")
        click.echo(markdown(one, picture=picture, is_whole=whole))


@main.command("results")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=results.MINUTES, show_default=True)
@click.option("--only", type=Names(results.PARTS), help="These benchmarks alone, in as much time.")
@click.option("--folder", type=click.Path(file_okay=False), default=str(Path(__file__).parent), help="Else: this one.")
def write_results(minutes: float, only: tuple[str, ...] | None, folder: str) -> None:
    """Write RESULTS.md and its plots anew, within so many minutes; exit 0 when all bars are met."""
    sys.exit(0 if results.write(Path(folder), minutes, only or tuple(results.PARTS)) else 1)


def _run_all(**values: Any) -> None:
    _run([name for name in NAMES if not getattr(_module(name), "IS_APART", False)], **values)


def _run(
    names: list[str],
    sizes: tuple[int, ...] | None,
    rounds: int | None,
    seconds: float | None,
    within: float | None,
    json: str | None,
    plot: str | None,
    **more: Any,
) -> None:
    """Run them one after the other; exit 0 when all bars are met."""
    if plot is not None and find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib, which the extra `bench` installs")
    options = Options(sizes, rounds, seconds, within, more)
    done: list[Report] = []
    for name in names:
        done.append(_report(name, options))
        print_report(done[-1])
        if json is not None:
            reports.write(done, json)
    if plot is not None:
        for one in done:
            if one.has_plot:
                _plot(one, Path(plot) if len(done) == 1 else Path(plot).with_stem(f"{Path(plot).stem}-{one.name}"))
    sys.exit(0 if all(one.is_met for one in done) else 1)


def _report(name: str, options: Options) -> Report:
    """What a benchmark measured; interrupted, what it had until then, where it may not take as long as it wants."""
    module, began = _module(name), time.monotonic()
    count = getattr(module, "comparisons", None)
    ends = float("inf") if options.within is None else began + options.within
    measure.pace = measure.Pace(ends, COMPARISONS if count is None else count(options))
    try:
        report: Report = module.run(options)
    except KeyboardInterrupt:
        if options.within is None or reports.begun is None:
            raise
        report = reports.begun
        report.absent[reports.CUT_OFF] = f"cut off after {time.monotonic() - began:.0f} s"
    report.notes += measure.pace.notes()
    return report


def _plot(one: Report, path: Path) -> None:
    from .plot import plot

    path.parent.mkdir(parents=True, exist_ok=True)
    plot(one, path)
    click.echo(f"plotted to {path}", err=True)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __package__)


def _question(module: ModuleType) -> str:
    return reports.name_and_question(module.__doc__)[1]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
