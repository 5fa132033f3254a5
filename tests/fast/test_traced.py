"""The compiled twin does to shared words what the plain client does, in the same order: the explorer of interleavings
runs that one's code, and what it has shown holds for a twin that takes the same steps.

Loads may be fewer, or others: what is looked at beforehand is each client's own. What is stored, swapped, locked and
unlocked is the same, and what is loaded behind a fence, too."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import twins

import shmpool

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling import build; build.build_editable(sys.argv[1])"
RUN = "import traced, sys; traced.main(sys.argv[1])"

pytestmark = pytest.mark.long  # the twin is built once more


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with a traced build of these sources, one for all workers of a run."""
    if not (ROOT / "shmpool/_fast/build.py").exists():
        pytest.skip("no sources here")
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # of all workers
    with open(run / "traced.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "traced").exists():
            _build(run / "traced.new")
            (run / "traced.new").rename(run / "traced")
    return run / "traced"


def _build(tree: Path) -> None:
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("shmpool", "daemon", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    env = {**os.environ, "SHMPOOL_PURE": "", "SHMPOOL_COMPILED": "1", "SHMPOOL_TRACED": "1"}
    env["CFLAGS"] = "-O0"  # the same steps, compiled in half the time
    subprocess.run(
        [sys.executable, "-c", BUILD, str(tree / "wheel")], cwd=tree, env=env, check=True, capture_output=True,
        timeout=600,
    )  # fmt: skip


def steps_of(tree: Path, kind: str, address: str) -> list[Any]:
    path = os.pathsep.join([str(tree), str(tree / "daemon"), str(Path(__file__).parent)])
    env = {**twins.environment(kind), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, address], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def changes(steps: list[Any]) -> list[Any]:
    """What others see, or wait for."""
    return [step for step in steps if step[0] in "scku"]


@pytest.mark.parametrize("way", ["locks", "cas"])
def test_the_twin_takes_the_steps_of_the_plain_client(traced: Path, way: Literal["locks", "cas"]) -> None:
    taken = []
    for kind in ("plain", "compiled"):
        with shmpool.Broker(memory_limit="64MiB", tickets=way, magazine_idle="1h") as broker:
            taken.append(steps_of(traced, kind, broker.address))
    plain, compiled = taken
    assert [verb for verb, *_ in plain] == [verb for verb, *_ in compiled]
    stored = 0
    for (verb, size, reference), (_, _, twin) in zip(plain, compiled, strict=True):
        assert changes(twin) == changes(reference), f"{verb} of {size} bytes"
        stored += len(changes(twin))
        for at, step in enumerate(twin):
            if step[0] == "f":  # what was done before it is seen by all before what is loaded behind it
                assert changes(twin[:at]), f"{verb}: a fence with nothing before it"
                behind = [other[1:3] for other in twin[at + 1 :] if other[0] == "l"]
                # Behind the one of an opening under a lock the payload is looked at.
                assert behind or verb.startswith("open"), f"{verb}: nothing is looked at behind the fence"
                assert all(looked in [other[1:3] for other in reference if other[0] == "l"] for looked in behind)
    assert stored > 100


@pytest.mark.parametrize("way", ["locks", "cas"])
def test_a_fence_stands_between_what_is_given_up_and_the_look_who_waits(
    traced: Path, way: Literal["locks", "cas"]
) -> None:
    """DONE and the look at the custodian, IDLE and the look at the wanted flag."""
    with shmpool.Broker(memory_limit="64MiB", tickets=way, magazine_idle="1h") as broker:
        releases = [steps for verb, _, steps in steps_of(traced, "compiled", broker.address) if verb == "release"]
    assert releases
    for steps in releases:
        kinds = "".join(step[0] for step in steps)
        assert "sf" in kinds and "sl" not in kinds, kinds
