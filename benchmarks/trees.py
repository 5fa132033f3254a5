"""Two source trees beside each other: a process with a broker for each, rounds that alternate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import click

from .measure import Lap, Series
from .operations import BATCH, OPERATIONS

ROOT = Path(__file__).resolve().parent.parent
_PROGRAM = Path(__file__).with_name("operations.py")

#: Processes of each tree, one after the other.
LIVES = 3


class TreeFailed(click.ClickException):
    """A tree's process died; what it wrote to stderr says why."""


class TreePath(click.ParamType):
    """The root of a checkout, with its `shmpool` and its `daemon`."""

    name = "PATH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value).resolve()
        for package in ("shmpool", "daemon/shmpoold"):
            if not (path / package / "__init__.py").is_file():
                self.fail(f"{value} has no {package}/__init__.py: give the root of a checkout", param, ctx)
        return path


class Tree:
    """A process that imports shmpool, and starts its broker, from one source tree."""

    def __init__(self, path: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(path), str(path / "daemon")]),
                "PYTHONHASHSEED": "0",
                **environment,
            },
        )
        is_compiled = self._answer()["compiled"]
        if environment.get("SHMPOOL_PURE") == "" and not is_compiled:
            raise TreeFailed(f"{path} has no compiled part for this Python: install it with `pip install -e {path}`")

    def lap(self, operation: str, nbytes: int, objects: int) -> dict[str, float]:
        """Run it once: the seconds by what was timed."""
        assert self._process.stdin is not None
        print(
            json.dumps({"operation": operation, "nbytes": nbytes, "objects": objects}),
            file=self._process.stdin,
            flush=True,
        )
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TreeFailed(f"the process of {self.path} ended with status {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def measure(
    paths: tuple[Path, Path],
    sizes: Sequence[int],
    rounds: int,
    seconds: float,
    environments: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> Iterator[tuple[int, str, Series, Series]]:
    """Every operation at every size by both trees, one lap of each tree by turns, as many objects in each:
    (bytes, what was timed, of the first, of the second).

    The rounds are spread over `LIVES` processes of each tree: where a process happens to lie in memory
    makes it faster or slower for as long as it lives, by up to 4 %."""
    measured: dict[tuple[int, str], tuple[Series, Series]] = {}
    for life in range(min(LIVES, rounds)):
        with Tree(paths[0], environments[0]) as first, Tree(paths[1], environments[1]) as second:
            laps = [
                (nbytes, operation, min(_fill(tree, operation, nbytes, seconds) for tree in (first, second)))
                for nbytes, operation in product(sizes, OPERATIONS)
            ]
            for (nbytes, operation, objects), _ in product(laps, range(life, rounds, LIVES)):
                for which, tree in enumerate((first, second)):
                    for name, took in tree.lap(operation, nbytes, objects).items():
                        both = measured.setdefault((nbytes, name), (Series(), Series()))
                        both[which].add(Lap(took), objects)
    for (nbytes, name), both in measured.items():
        yield nbytes, name, *both


def _fill(tree: Tree, operation: str, nbytes: int, seconds: float) -> int:
    """Objects for *seconds*, whole batches, by laps that grow and warm it up."""
    objects = BATCH
    while (took := sum(tree.lap(operation, nbytes, objects).values())) < seconds / 2:
        objects *= 2
    return max(BATCH, int(objects * seconds / took) // BATCH * BATCH)
