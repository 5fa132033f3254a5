"""The compiled twin does what the plain client does, and mixes with it."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import twins

import shmpool
from shmpool import _fast

TICKETS = 2000
#: By how tickets are taken.
RACERS = {
    "locks": ("plain", "compiled", "plain", "compiled"),
    "cas": ("plain", "compiled", "asking", "plain", "compiled"),
}


def test_it_was_made_from_these_sources() -> None:
    """Else it is to be built anew."""
    folder = Path(_fast.__file__).parent
    sources = b"".join((folder / name).read_bytes() for name in ("twin.pyx", "parting.pxi", "objects.pxi", "slots.h"))
    built = twins.run("compiled", "from shmpool._fast import twin; print(twin.DIGEST)")
    assert built == hashlib.sha256(sources).hexdigest()[:16]


def test_it_is_chosen_at_import_and_can_be_switched_off() -> None:
    ask = "import shmpool; print(shmpool.__compiled__)"
    assert (twins.run("compiled", ask), twins.run("plain", ask)) == ("True", "False")


@pytest.mark.parametrize("settings", [{}, {"checksums": True}, {"detailed_metrics": True}, {"tickets": "cas"}], ids=str)
def test_every_word_of_the_ledger_is_the_same(settings: dict[str, bool | str]) -> None:
    _walk_twice(1, 600, settings)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 30))
def test_every_word_of_the_ledger_is_the_same_for_many_walks(seed: int) -> None:
    _walk_twice(seed, 4000, {"tickets": "cas"} if seed % 2 else {})


def _walk_twice(seed: int, steps: int, settings: dict[str, bool | str]) -> None:
    walk = "import runpy, walk; runpy.run_module('walk', run_name='__main__')"
    plain, compiled = [
        json.loads(twins.run(kind, walk, str(seed), str(steps), json.dumps(settings))) for kind in ("plain", "compiled")
    ]
    assert len(plain) == len(compiled) == steps
    for number, (ours, theirs) in enumerate(zip(plain, compiled, strict=True)):
        assert theirs == ours, f"step {number}"


RACE = """
import sys, struct, warnings, shmpool
from shmpool import _fast
from shmpool.system import atomics
if sys.argv[3] == "asking":  # neither the compiled part nor libatomic
    atomics.swap_of = lambda words: None
    warnings.simplefilter("ignore")
with shmpool.connect(sys.argv[1]) as pool:
    print(_fast.COMPILED, flush=True)
    while handles := sys.stdin.buffer.read(24 * int(sys.argv[2])):
        won = 0
        print("ready", flush=True)
        sys.stdin.buffer.read(1)
        for at in range(0, len(handles), 24):
            try:
                buffer = pool.open(handles[at : at + 24])
            except (shmpool.HandleUsed, shmpool.StaleHandle):
                continue
            assert bytes(buffer.view[:8]) == struct.pack("<Q", at // 24)
            won += 1
            buffer.release()
        print(won, flush=True)
"""


@pytest.mark.parametrize("way", ["locks", "cas"])
@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.long)])
def test_each_ticket_is_opened_once_by_installations_that_race(rounds: int, way: Literal["locks", "cas"]) -> None:
    """All have all handles, and go through them in the same order."""
    kinds, won = RACERS[way], Counter[str]()
    with shmpool.Broker(memory_limit="64MiB", max_clients=16, tickets=way) as broker, broker.connect() as pool:
        racers = [twins.start(kind, RACE, broker.address, str(TICKETS), kind) for kind in kinds]
        try:
            for kind, racer in zip(kinds, racers, strict=True):
                assert hear(racer) == str(kind == "compiled")
            for number in range(rounds):
                won += _race(racers, kinds, [_publish(pool, ticket) for ticket in range(TICKETS)])
                assert won.total() == (number + 1) * TICKETS
        finally:
            for racer in racers:
                racer.communicate(timeout=60)
        assert [racer.returncode for racer in racers] == [0] * len(racers)
        assert (pool.stats().tickets_asked > 0) == (way == "cas")
    assert rounds == 1 or set(won) == set(kinds), "one of them won none: there was no race"


ENDED_BY_A_FINALIZER = """
import gc, sys
import shmpool
pool = shmpool.connect(sys.argv[1])
ended = []

def end(phase, info):
    if phase == "start" and end.lease is not None:
        lease, end.lease = end.lease, None
        lease.release()
        ended.append(lease)

gc.callbacks.append(end)
refused = 0
for number in range(40):
    end.lease = None
    lease = pool.lease(5000 if number % 2 else 300_000)
    publish = type(lease).publish  # a bound method would be collected for itself
    gc.collect()
    end.lease, threshold = lease, number // 8 + 1
    counted = [[] for _ in range(number % 8)]
    gc.set_threshold(threshold, 0, 0)
    try:
        handle = publish(lease)
    except shmpool.LeaseReleased:
        refused += 1
    else:
        gc.set_threshold(0)
        pool.open(handle).release()
    gc.set_threshold(0)
print("end", refused <= len(ended))
"""


def test_lease_that_a_finalizer_ends_while_it_is_published_is_refused(tmp_path: Path) -> None:
    """What is allocated for the handle may collect garbage, and so run anything."""
    with shmpool.Broker(memory_limit="16MiB") as broker:
        done = subprocess.run(
            [sys.executable, "-c", ENDED_BY_A_FINALIZER, broker.address], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.returncode) == ("end True\n", 0), done.stderr


def _publish(pool: shmpool.Pool, number: int) -> bytes:
    with pool.lease(64) as lease:
        lease.view[:8] = struct.pack("<Q", number)
        return lease.publish()


def _race(racers: list[subprocess.Popen[bytes]], kinds: tuple[str, ...], handles: list[bytes]) -> Counter[str]:
    """How many were opened, by kind."""
    for racer in racers:
        _say(racer, b"".join(handles))
    assert {hear(racer) for racer in racers} == {"ready"}
    for racer in racers:
        _say(racer, b"!")
    won = Counter[str]()
    for kind, racer in zip(kinds, racers, strict=True):
        won[kind] += int(hear(racer))
    return won


def hear(racer: subprocess.Popen[bytes]) -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().decode().strip()


def _say(racer: subprocess.Popen[bytes], what: bytes) -> None:
    assert racer.stdin is not None
    rest = memoryview(what)
    while rest:  # its pipe is not buffered here
        rest = rest[racer.stdin.write(rest) :]
