"""The compiled twin does what the plain client does, and mixes with it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import twins
from corners import corner, sizes
from patience import eventually, rounds

import shmpool
from shmpool.stats import query, query_invariants

TICKETS = 2000
#: By how tickets are taken.
RACERS = {
    "locks": ("plain", "compiled", "plain", "compiled"),
    "cas": ("plain", "compiled", "asking", "plain", "compiled"),
}


def test_one_that_was_made_from_other_sources_is_not_used(tmp_path: Path) -> None:
    """As after a pull: it may store other words than the rest of the package."""
    package = Path(shmpool.__file__).parent
    shutil.copytree(package, tmp_path / "shmpool", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "shmpool/_fast"
    for name in ("twin.pyx", "slots.h"):  # a wheel has no sources
        with open(folder / name, "a") as source:
            source.write("\n")
    told = subprocess.check_output(
        [sys.executable, "-P", "-c", "import shmpool; print(shmpool.__compiled__, shmpool._fast.WHY_PLAIN)"],
        env={**os.environ, "SHMPOOL_PURE": "", "PYTHONPATH": str(tmp_path)}, text=True,
    )  # fmt: skip
    assert told.startswith("False the compiled part cannot be used: it was made from other sources"), told


@pytest.mark.fresh
def test_it_is_chosen_at_import_and_can_be_switched_off() -> None:
    ask = "import shmpool; print(shmpool.__compiled__)"
    assert (twins.run("compiled", ask), twins.run("plain", ask)) == ("True", "False")
    assert "SHMPOOL_PURE" in twins.run("plain", "from shmpool._fast import WHY_PLAIN; print(WHY_PLAIN)")


WINDOWS = """
import os, shmpool
from shmpool.seat.windows import READ, WRITE, Piece, Windows, _all_alive

fd = os.memfd_create("windows")
os.ftruncate(fd, 1 << 20)
os.pwrite(fd, b"here", 8192)
for protection, length in ((READ, 4096), (WRITE, 65536)):
    window = Windows().make([Piece(fd, 8192, length)], protection)
    told = [getattr(window, name) for name in ("evidence", "is_sparse", "is_writable")]
    print(told, type(window.owner).__name__, len(window), window[:4], any(one() is window for one in _all_alive))
try:
    Windows().make([Piece(fd, 1 << 20, 4096)], READ)  # as of a segment that a peer has truncated
except OSError as error:
    print(error.errno)
"""


def test_a_window_is_known_and_says_the_same() -> None:
    """Who forks looks at all windows, and at what each says of itself."""
    plain, compiled = twins.run("plain", WINDOWS), twins.run("compiled", WINDOWS)
    assert plain == compiled
    assert compiled.splitlines() == [
        "[None, False, False] Windows 4096 b'here' True", "[None, False, True] Windows 65536 b'here' True", "14",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"checksums": True, "detailed_metrics": True},
        *corner({"tickets": "cas"}, {}, {"checksums": True}, {"detailed_metrics": True}),
    ],
    ids=str,
)
def test_every_word_of_the_ledger_is_the_same(settings: dict[str, bool | str]) -> None:
    _walk_twice(1, 600, settings)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=pytest.mark.long if seed < 4 else pytest.mark.exhaustive) for seed in range(2, 30)],
)
def test_every_word_of_the_ledger_is_the_same_for_many_walks(seed: int) -> None:
    _walk_twice(seed, 2500, {"tickets": "cas"} if seed % 2 else {})


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
@pytest.mark.parametrize("least", sizes(1, 25, 100))
def test_each_ticket_is_opened_once_by_installations_that_race(least: int, way: Literal["locks", "cas"]) -> None:
    """All have all handles, and go through them in the same order."""
    kinds, won = RACERS[way], Counter[str]()
    with shmpool.Broker(memory_limit="64MiB", max_clients=16, tickets=way) as broker, broker.connect() as pool:
        racers = [twins.start(kind, RACE, broker.address, str(TICKETS), kind) for kind in kinds]
        try:
            for kind, racer in zip(kinds, racers, strict=True):
                assert hear(racer) == str(kind == "compiled")
            for number in rounds(least, lambda: least == 1 or set(won) == set(kinds)):
                won.update(_race(racers, kinds, [_publish(pool, ticket) for ticket in range(TICKETS)]))
                assert won.total() == (number + 1) * TICKETS
        finally:
            for racer in racers:
                racer.communicate(timeout=60)
        assert [racer.returncode for racer in racers] == [0] * len(racers)
        # In a few rounds none need have met another at a swap.
        assert way == "cas" if pool.stats().tickets_asked else way == "locks" or least == 1


ENDED_BY_A_FINALIZER = """
import gc, sys
import shmpool
pool = shmpool.connect(sys.argv[1])
verb, ended = sys.argv[2], []

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
        if verb == "view":
            lease.view[0] = 1
            gc.set_threshold(0)
        handle = publish(lease)
    except shmpool.LeaseReleased:
        refused += 1
    else:
        gc.set_threshold(0)
        pool.open(handle).release()
    gc.set_threshold(0)
print("end", refused <= len(ended))
"""


@pytest.mark.parametrize("verb", ["publish", "view"])
def test_lease_that_a_finalizer_ends_in_the_middle_is_refused(verb: str) -> None:
    """What is allocated for its handle, or for its view, may collect garbage, and so run anything."""
    with shmpool.Broker(memory_limit="16MiB") as broker:
        done = subprocess.run(
            [sys.executable, "-c", ENDED_BY_A_FINALIZER, broker.address, verb],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == ("end True\n", 0), done.stderr
        assert not query_invariants(broker.address)


WRITTEN_WITHOUT_A_VIEW = """
import gc, sys
import shmpool
pool = shmpool.connect(sys.argv[1])
for _ in range(20):  # each slot has its window from here on
    pool.open(pool.lease(5000).publish()).release()

def is_viewed(lease):
    return any(isinstance(one, memoryview) for one in gc.get_referents(lease))

lease = pool.lease(5000)
lease.write(b"a" * 5000)
print(is_viewed(lease), lease.view is lease.view, is_viewed(lease), bytes(lease.view[:2]), len(lease.view))
lease.shorten(2)
lease.write(b"bc")
kept = lease.view
with pool.open(lease.publish()) as buffer:
    print(bytes(buffer))
try:
    kept[0]
except ValueError as error:
    print(error)
"""


def test_view_is_made_when_it_is_asked_for_and_is_one() -> None:
    """Who writes the payload at once has no use for one. The plain client makes it with the lease."""
    with shmpool.Broker(memory_limit="16MiB") as broker:
        done = subprocess.run(
            [sys.executable, "-c", WRITTEN_WITHOUT_A_VIEW, broker.address], env=twins.environment("compiled"),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    ended = "operation forbidden on released memoryview object"
    assert done.stdout.splitlines() == ["False True True b'aa' 5000", "b'bc'", ended], done.stderr


FORKED_BY_A_FINALIZER = """
import gc, os, sys, warnings
import shmpool
pool = shmpool.connect(sys.argv[1])
verb, children = sys.argv[2], []
main = os.getpid()

def fork(phase, info):
    if phase == "start" and fork.is_armed:
        fork.is_armed = False
        if pid := os.fork():
            children.append(pid)

gc.callbacks.append(fork)
fork.is_armed = False
for _ in range(3):  # from here on all of it is the twin's
    pool.open(pool.lease(5000).publish()).release()
for number in range(40):
    handle = pool.lease(5000).publish() if verb == "open" else None
    act = (lambda: pool.open(handle)) if verb == "open" else (lambda: pool.lease(5000))
    counted = [[] for _ in range(number % 8)]
    gc.collect()
    fork.is_armed = True
    gc.set_threshold(number // 8 + 1, 0, 0)
    try:
        one = act()
    except (shmpool.HandleUsed, shmpool.StaleHandle):  # of two, one is faster
        one = None
    finally:
        gc.set_threshold(0)
    fork.is_armed = False
    if os.getpid() != main:
        del one
        pool.close()
        os._exit(0)
    if one is not None:
        one.release()
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    children.clear()
print("end")
"""


@pytest.mark.parametrize(
    ("verb", "tickets", "way"),
    [
        ("lease", "auto", "compiled"),
        ("open", "locks", "compiled"),
        *corner(
            ("open", "auto", "plain"),
            ("lease", "auto", "plain"),
            ("open", "auto", "compiled"),
            ("open", "locks", "plain"),
        ),
    ],
)
def test_child_of_a_finalizer_that_forks_in_the_middle_has_its_own(
    verb: str, tickets: Literal["auto", "locks"], way: str
) -> None:
    """What is allocated may collect garbage, and so fork: both return into the call, the child as a process of its
    own, which stores nothing through what it inherited."""
    with shmpool.Broker(memory_limit="16MiB", handle_ttl=0.05, tickets=tickets) as broker:
        done = subprocess.run(
            [sys.executable, "-c", FORKED_BY_A_FINALIZER, broker.address, verb],
            env=twins.environment(way), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
        eventually(lambda: not query(broker.address).active_buffers)
        assert not query_invariants(broker.address)


CLOSED_BY_A_FINALIZER = """
import gc, sys
import shmpool
verb, ended = sys.argv[2], 0

def close(phase, info):
    if phase == "start" and close.pool is not None:
        pool, close.pool = close.pool, None
        pool.close()

gc.callbacks.append(close)
close.pool = None
for number in range(0, 40, 3):
    pool = shmpool.connect(sys.argv[1])
    for _ in range(3):
        pool.open(pool.lease(5000).publish()).release()
    handle = pool.lease(5000).publish()
    act = (lambda: pool.open(handle)) if verb == "open" else (lambda: pool.lease(5000))
    counted = [[] for _ in range(number % 8)]
    gc.collect()
    close.pool = pool
    gc.set_threshold(number // 8 + 1, 0, 0)
    try:
        act().release()
    except shmpool.ShmpoolError as error:
        ended += 1
    finally:
        gc.set_threshold(0)
    close.pool = None
    pool.close()
print("end")
"""


@pytest.mark.parametrize(
    ("verb", "kind", "way"),
    [
        ("lease", "compiled", "cas"),
        ("open", "compiled", "locks"),
        *corner(
            ("open", "plain", "cas"),
            ("lease", "compiled", "locks"),
            ("open", "compiled", "cas"),
            ("open", "plain", "locks"),
        ),
    ],
)
def test_pool_that_a_finalizer_closes_in_the_middle_ends_the_call(
    verb: str, kind: str, way: Literal["locks", "cas"]
) -> None:
    """Also where the call has the tickets' gate, as collections come at any line since Python 3.12."""
    with shmpool.Broker(memory_limit="16MiB", handle_ttl=0.05, tickets=way) as broker:
        done = subprocess.run(
            [sys.executable, "-c", CLOSED_BY_A_FINALIZER, broker.address, verb],
            env=twins.environment(kind), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
        eventually(lambda: not query(broker.address).clients)
        assert not query_invariants(broker.address)


GETS_WITHIN_A_GET = """
import sys
import numpy as np
import shmpool
pool = shmpool.connect(sys.argv[1])
first, second = np.arange(4096, dtype=np.int32), np.ones((2,) * 11, dtype=">f8")
for _ in range(3):  # their likes are known from then on
    pool.get(pool.put(first)), pool.get(pool.put(second))

class Copies:
    def __bool__(self):
        pool.get(other)
        return True

one, other = pool.put(first), pool.put(second)
print(np.array_equal(pool.get(one, copy=Copies()), first))
"""


def test_get_within_a_get_does_not_move_what_the_first_one_copies() -> None:
    pytest.importorskip("numpy")
    with shmpool.Broker(memory_limit="16MiB") as broker:
        assert twins.run("compiled", GETS_WITHIN_A_GET, broker.address) == "True"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes have no buffer protocol before Python 3.12")
def test_what_a_payloads_buffer_raises_reaches_who_writes() -> None:
    code = """if True:
        import sys, shmpool
        class Payload:
            def __buffer__(self, flags):
                raise KeyboardInterrupt
        pool = shmpool.connect(sys.argv[1])
        with pool.lease(8) as lease:
            try:
                lease.write(Payload())
            except KeyboardInterrupt:
                print("arrived")
    """
    with shmpool.Broker(memory_limit="16MiB") as broker:
        assert twins.run("compiled", code, broker.address) == "arrived"


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


@pytest.mark.parametrize("off", [0, 16, 48, 4080])
def test_what_is_written_is_what_was_given_wherever_it_lies(off: int) -> None:
    """Each way of copying, at its borders; and nothing is stored behind the end."""
    sizes = [
        2047,
        2048,
        2111,
        4000,
        65_471,
        65_472,
        65_536,
        131_000,
        (1 << 20) - 64,
        1 << 20,
        (8 << 20) - 1,
        (8 << 20) + 77,
    ]
    source = memoryview(bytearray(os.urandom(sizes[-1] + 4096)))
    with shmpool.Broker(memory_limit="128MiB", very_large_object_threshold="64MiB") as broker, broker.connect() as pool:
        for nbytes in sizes:
            part, behind = source[off : off + nbytes], b"\x55" * 64
            with pool.lease(nbytes + 64) as lease:  # of as many pages, so the slot that is leased next
                lease.view[nbytes:] = behind
            with pool.lease(nbytes) as lease:
                lease.write(part)
                assert lease.view == part
            with pool.lease(nbytes + 64) as lease:
                assert lease.view[nbytes:] == behind


def test_what_readers_are_far_behind_with_is_written_as_it_is() -> None:
    """Past the caches, from 24 MiB on that nobody has read."""
    nbytes = 4 << 20
    content = [os.urandom(nbytes) for _ in range(3)]
    with shmpool.Broker(memory_limit="128MiB", very_large_object_threshold="64MiB") as broker, broker.connect() as pool:
        handles = []
        for number in range(9):
            with pool.lease(nbytes) as lease:
                lease.write(content[number % 3])
                handles.append(lease.publish())
        for number, handle in enumerate(handles):
            with pool.open(handle) as buffer:
                assert buffer.view == content[number % 3]
        with pool.lease(30 << 20) as lease:  # of slots that are larger than that, of which none was published
            lease.shorten(nbytes)
            lease.write(content[0])
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view == content[0]


TIMED = """
import sys, shmpool
pool = shmpool.connect(sys.argv[1])
def cycle():
    pool.open(pool.lease(5000).publish()).release()
def timed():
    return sum(sum(one["counts"]) for one in pool.stats().latency_histogram.values())
for _ in range(64):
    cycle()
before, ran = timed(), set()
sys.setprofile(lambda frame, event, _: ran.add(frame.f_code.co_name) if event == "call" else None)
for _ in range(640):
    cycle()
sys.setprofile(None)
print(ran & {"lease", "_lease_sampled"}, timed() - before)
"""


def test_lease_that_is_timed_runs_no_line_of_python() -> None:
    """One in 64: in the plain way it takes as long as twelve others."""
    with shmpool.Broker(memory_limit="16MiB") as broker:
        assert twins.run("compiled", TIMED, broker.address) == "set() 10"


IN_TURNS = """
import sys, shmpool
pool = shmpool.connect(sys.argv[1])
leases = [pool.lease(256 << 10) for _ in range(24)]
while leases[0]._slot.magazine.ready:
    leases.append(pool.lease(256 << 10))
rows = [lease._slot.row for lease in reversed(leases)]
handles = [lease.publish() for lease in leases]
for handle in handles[:-8]:
    pool.open(handle).release()
again = [pool.lease(256 << 10) for _ in range(9)]
print([rows.index(lease._slot.row) for lease in again])
"""


@pytest.mark.parametrize("kind", ["plain", "compiled"])
def test_what_readers_have_not_read_yet_is_among_what_takes_turns(kind: str) -> None:
    """16 slots of 256 KiB do, of which eight are still with the readers: so the oldest of the eight newest that are
    done is leased. Others are left where they are, unless these are leased, too."""
    with shmpool.Broker(memory_limit="64MiB", magazine_idle="1h") as broker:
        told = twins.run(kind, IN_TURNS, broker.address)
        assert told == str([15, 14, 13, 12, 11, 10, 9, 8, 23])
