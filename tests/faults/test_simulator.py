"""A million events of the simulated world (tests/core/simulation.py) in the long setting, a part of
them in the default one, and that a seed replays them exactly.

An event is one that the broker's core handles: a message, a death, a warmed slot, a tick. At
each one the shadow of tests/core/harness.py checks who uses what; the core's own invariants,
which look at every row, are checked at every hundredth and after each restart. Around each
event clients lease, write, publish, open, ring, die about one and a half times as often.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "core"))

from simulation import Simulation

EVENTS = 1_000_000
PARTS = 10
SOME = 3_000
#: What a course of events leaves behind, from another process: its hashes are other ones.
DIGEST = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from test_simulator import digest
print(digest(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_and_nothing_given_twice_in_a_million_events(part: int) -> None:
    print(simulate(EVENTS // PARTS))


def test_nothing_is_lost_and_nothing_given_twice_in_some_thousand_events() -> None:
    print(simulate(SOME))


def simulate(events: int) -> str:
    """With a seed of its own."""
    seed = random.SystemRandom().randrange(1 << 32)
    simulation = Simulation(seed, check_every=100)
    started = time.process_time()
    gc.disable()  # a sixth of the time, and nothing is found
    try:
        simulation.run(events)
    except BaseException as error:
        error.add_note(f"replay it: pytest tests/core/test_simulation.py --seed {seed} --events {events}")
        raise
    finally:
        gc.enable()
    world, seconds = simulation.world, time.process_time() - started
    assert world.events >= events
    return (
        f"seed {seed}: {world.events} events, {world.events / seconds:.0f} per second of CPU; {dict(simulation.done)}"
    )


def digest(seed: int, check_every: int) -> str:
    """Of every event and action in their order, and of the memory in the end."""
    simulation = Simulation(seed, check_every=check_every)
    course = hashlib.sha256()

    class Recorder:
        def append(self, what: object) -> None:
            course.update(repr(what).encode())

    simulation.world.recent = Recorder()  # type: ignore[assignment]
    simulation.run(500)
    course.update(bytes(simulation.world.ledger) + bytes(simulation.world.header))  # type: ignore[arg-type]
    return course.hexdigest()


def test_a_seed_replays_exactly_whatever_is_checked_and_in_whatever_process() -> None:
    expected = digest(7, 5)
    assert digest(7, 100) == expected
    assert digest(8, 100) != expected
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", DIGEST, "7", "0"]
    assert subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.strip() == expected
