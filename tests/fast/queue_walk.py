"""A random walk through a queue's short ways, the same for the same seed, and what its words say after each step."""

from __future__ import annotations

import gc
import hashlib
import json
import queue
import random
import sys
from array import array
from typing import Any

import shmpool
from shmpool.protocol.handle import Handle
from shmpool.protocol.queues import (
    GRANULE_BYTES,
    HEAD,
    ITEM_HEAD,
    KIND_SHIFT,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOCKS,
    TAIL,
    Kind,
    first_said,
    granules_of,
)

LENGTHS = (0, 1, 10, 23, 24, 25, 32, 56, 57, 1000, 4095, 4096, 4097, 9000)


def walk(seed: int, steps: int, options: dict[str, Any]) -> list[str]:
    """What each step gave, with a digest of the queue's memory (but for its locks)."""
    chance = random.Random(seed)
    told: list[str] = []
    gc.disable()
    kind = shmpool.JoinableQueue if options.pop("joinable", False) else shmpool.Queue
    with shmpool.Broker(memory_limit="64MiB", magazine_idle="1h") as broker, broker.connect() as pool:
        one = kind(pool=pool, **options)
        ring = one._ring
        for _ in range(steps):
            what = chance.choice(STEPS)
            try:
                outcome = what(chance, one)
            except Exception as error:
                outcome = type(error).__name__
            told.append(f"{what.__name__} {outcome} {_digest(ring)} {one.qsize()}")
        one.shutdown(immediate=True)
        one.close()
    return told


def _digest(ring: Any) -> str:
    """Of its words but for the locks, with one name for each process; and of what lies between HEAD and TAIL: nobody
    reads what was taken."""
    words, name, first = ring.words, ring.tail_end.name, ring.first // 8
    found = array("Q", words[:LOCKS].tobytes() + words[first_said(ring.seats, 0) : first].tobytes())
    while name in found:
        found[found.index(name)] = 1
    digest = hashlib.md5()
    at, end = words[HEAD] >> 32, words[TAIL] >> 32
    while at != end:
        place = first + (at & ring.mask) * GRANULE_BYTES // 8
        kind, length = words[place] >> KIND_SHIFT, words[place] >> LENGTH_SHIFT & LENGTH_MASK
        found.append(words[place])
        digest.update(ring.raw[8 * place + ITEM_HEAD : 8 * place + ITEM_HEAD + length])
        at += ring.granules - (at & ring.mask) if kind == Kind.PAD else granules_of(length)
    digest.update(found)
    return digest.hexdigest()


def thing(chance: random.Random) -> Any:
    content = chance.randbytes(chance.choice(LENGTHS))
    return chance.choice((
        content, content, content, content[:24].ljust(24, b"h"), Handle(content[:24].ljust(24, b"h")),
        Handle(content[:5]), len(content), -1, 2.5, True, None, content.hex(), (1, content), bytearray(content),
        [content.hex()],
    ))  # fmt: skip


def shown(obj: Any) -> str:
    return f"{type(obj).__name__} {hashlib.md5(repr(obj).encode()).hexdigest()}"


def put(chance: random.Random, one: Any) -> str:
    one.put(thing(chance), *chance.choice(((False,), (True, 0.0), (False, None))))
    return "put"


def put_for_ever(chance: random.Random, one: Any) -> str:
    """By the default, where there is room for certain."""
    if one.qsize():
        return "full"
    one.put(thing(chance))
    return "put"


def put_many(chance: random.Random, one: Any) -> str:
    many: Any = chance.choice((
        [thing(chance) for _ in range(chance.randrange(5))],
        [chance.randbytes(chance.choice(LENGTHS[:6]))] * chance.randrange(100),
        tuple(range(chance.randrange(30))), iter([b"a", b"b"]), {b"c": 1}, [Handle(bytes(24))] * 3, [lambda: 0, b"a"],
        [b"x" * 4096] * 40, [b"a", lambda: 0],
    ))  # fmt: skip
    waits = (True, None) if one.qsize() < 10 < one.capacity - 200 else (False,)
    return str(one.put_many(many, *chance.choice(((False,), (True, 0.0), waits))))


def get(chance: random.Random, one: Any) -> str:
    return shown(one.get(*chance.choice(((False,), (True, 0.0), (True, None) if one.qsize() else (False,)))))


def get_many(chance: random.Random, one: Any) -> str:
    wanted = chance.choice((1, 2, 16, 64, 65, 500, 0, -1))
    found = one.get_many(wanted, False)
    while len(found) < wanted and one.qsize():  # where a run ends is the affair of either
        found += one.get_many(wanted - len(found), False)
    return f"{len(found)} " + hashlib.md5(" ".join(map(shown, found)).encode()).hexdigest()


def nonsense(chance: random.Random, one: Any) -> str:
    chance.choice((
        lambda: one.put(b"x", True, "soon"), lambda: one.put(lambda: 0), lambda: one.get(True, "soon"),
        lambda: one.put(), lambda: one.get_many(1.5), lambda: one.put_many(5), lambda: one.get_many("x"),
        lambda: one.put_many([b"a"], True, "x"),
    ))()  # fmt: skip
    return "accepted"


STEPS = (put, put, put, put, put_for_ever, put_many, put_many, get, get, get, get, get_many, nonsense)

if __name__ == "__main__":
    try:
        print(json.dumps(walk(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))))
    except queue.Empty:
        sys.exit("nothing is left behind")
