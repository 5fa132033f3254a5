"""``python -m benchmarks`` lists the benchmarks, ``python -m benchmarks NAME`` runs one."""

from __future__ import annotations

import importlib
import sys

import click

from .measure import console, machine

NAMES = ("cycle", "stream", "handoff", "messages", "footprint")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--sizes", help="Sizes in bytes, separated by commas.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds to measure.")
def main(names: tuple[str, ...], sizes: str | None, rounds: int | None) -> None:
    """Run benchmarks by name, or `all`; without a name, list them."""
    if not names:
        for name in NAMES:
            console.print(f"[bold]{name}[/]: {_module(name).__doc__.split(': ', 1)[1]}")
        return
    options: dict[str, object] = {}
    if sizes:
        options["sizes"] = tuple(int(size) for size in sizes.split(","))
    if rounds:
        options["rounds"] = rounds
    console.print(machine())
    met = [_module(name).run(**options) for name in (NAMES if names == ("all",) else names)]
    sys.exit(0 if all(met) else 1)


def _module(name: str):
    if name not in NAMES:
        raise click.UsageError(f"there is no benchmark {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f".{name}", __package__)


main()
