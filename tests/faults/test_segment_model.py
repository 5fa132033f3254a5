"""Direct segments that are kept, as a model: every order of every step of a producer, a reader and a broker.

The explorer (`interleaving`) runs the real code over a few steps. Here, with more of them, memory
comes and goes, and a reader's map may be of a segment that is no more: one row, whose segment has
the row's birth for its name; a broker that hands a done one on as it lies, makes it longer under another
name, or removes it; producers that publish, keep or pass on, recycle, return or die, one after the other; a
reader that maps before it takes its ticket, keeps its map, or dies; brokers that die and start anew. Whoever
looks sees the bytes of the publication that he opened, in pages that are there, and no good handle is refused.
Stores are seen at once, or each party's last one late, as x86's store buffers have it. Each of the mutants
leaves one ingredient out, and is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

FREE, IDLE, LEASED, PUBLISHED, RETURNED = "FREE", "IDLE", "LEASED", "PUBLISHED", "RETURNED"
PENDING, TAKEN, DONE = "PENDING", "TAKEN", "DONE"
#: Parties, and the producers' seats: the second is there when the first has died.
BROKER, READER, SEATS = 0, "reader", (1, 2)
MOST_RESTARTS = 1
SHORT, LONG = 1, 2


class Violation(Exception):
    pass


class Segment(NamedTuple):
    """An inode by its name (the row's birth): how long it is, and of which generation the bytes are."""

    name: int
    inode: int
    length: int
    content: int


class Map(NamedTuple):
    """What a reader maps: by which name it was found, and as much as there was."""

    name: int
    inode: int
    length: int


class Stored(NamedTuple):
    """A store that only its party sees yet."""

    word: str
    value: object


@dataclass(frozen=True)
class World:
    """*grant* is (generation, state, seat), *cell* (generation, state); *posted* are handles on their way, that
    may come twice: (generation, length). *buffers*: by party, what it stored and others do not see yet."""

    grant: tuple[int, str, int] = (1, FREE, BROKER)
    cell: tuple[int, str] = (0, DONE)
    birth: int = 0
    segments: frozenset[Segment] = frozenset()
    inodes: int = 0
    #: The row's segment lies spare, as the broker remembers.
    is_spare: bool = False
    posted: frozenset[tuple[int, int]] = frozenset()
    producer: int = SEATS[0]
    is_producer_alive: bool = True
    #: What the producer is to say next: the handle of what it has just published.
    to_post: tuple[int, int] | None = None
    restarts: int = 0
    readers: int = 1
    #: What the reader does: nothing, has a handle, has mapped what it names, has opened it, has let go of its view.
    step: str = "idle"
    handle: tuple[int, int] = (0, SHORT)
    map: Map | None = None
    buffers: tuple[tuple[object, tuple[Stored, ...]], ...] = ()

    def buffer(self, party: object) -> tuple[Stored, ...]:
        return dict(self.buffers).get(party, ())

    def with_buffer(self, party: object, stored: tuple[Stored, ...]) -> World:
        others = tuple(one for one in self.buffers if one[0] != party)
        return replace(self, buffers=tuple(sorted((*others, *(((party, stored),) if stored else ())), key=str)))

    def seen_by(self, party: object, word: str) -> object:
        for stored in reversed(self.buffer(party)):
            if stored.word == word:
                return stored.value
        return getattr(self, word)

    def named(self, name: int) -> Segment | None:
        return next((one for one in self.segments if one.name == name), None)


@dataclass(frozen=True)
class Rules:
    """What a mutant leaves out."""

    named_by_birth: bool = True
    maps_are_checked: bool = True
    recycled_when_done: bool = True
    freed_when_done: bool = True
    renamed_when_longer: bool = True
    taken_until_dead: bool = True
    done_behind_the_view: bool = True
    kept: bool = True
    spared: bool = True
    is_tso: bool = False
    generations: int = 2
    readers: int = 1


# --- stores -------------------------------------------------------------------------------------------


def store(world: World, rules: Rules, party: object, word: str, value: object) -> World:
    if not rules.is_tso:
        return commit(world, Stored(word, value))
    return world.with_buffer(party, (*world.buffer(party), Stored(word, value)))


def commit(world: World, stored: Stored) -> World:
    if stored.word == "bytes":  # of an inode, of which this generation is written
        inode, generation = stored.value  # type: ignore[misc]
        return replace(
            world,
            segments=frozenset(
                one._replace(content=generation) if one.inode == inode else one for one in world.segments
            ),
        )
    return replace(world, **{stored.word: stored.value})  # type: ignore[arg-type]


def drained(world: World, party: object) -> World:
    """Behind a call of the kernel: a message, a lock, a map."""
    for stored in world.buffer(party):
        world = commit(world, stored)
    return world.with_buffer(party, ())


# --- steps --------------------------------------------------------------------------------------------


def steps(world: World, rules: Rules) -> Iterator[World]:
    for party, (first, *rest) in world.buffers:
        yield commit(world, first).with_buffer(party, tuple(rest))
    yield from _broker(world, rules)
    if world.is_producer_alive:
        yield from _producer(world, rules)
        yield replace(world.with_buffer(world.producer, ()), is_producer_alive=False, to_post=None)
    yield from _reader(world, rules)


def _removed(world: World) -> World:
    return replace(world, segments=frozenset(one for one in world.segments if one.name != world.birth), is_spare=False)


def _broker(world: World, rules: Rules) -> Iterator[World]:
    """Its own stores go out with the message or the call that follows."""
    (generation, state, seat), cell = world.grant, world.cell
    is_done = cell == (generation, DONE) or not rules.freed_when_done
    if world.restarts < MOST_RESTARTS:  # no row names what lies spare
        after = _removed(world) if state == FREE and world.is_spare else world
        yield replace(after, restarts=world.restarts + 1, is_spare=False)
    if state == FREE and world.is_producer_alive:
        yield from _granted(world, rules)
    if state == FREE and world.is_spare:
        yield _removed(world)
    if state == RETURNED:
        yield from _ended(replace(world, grant=(generation, FREE, BROKER)), rules)
    if state == PUBLISHED and seat == BROKER and is_done:
        yield from _ended(replace(world, grant=(generation + 1, FREE, BROKER)), rules)
    if not world.is_producer_alive and seat == world.producer:  # its death is swept
        if state == PUBLISHED:
            yield replace(world, grant=(generation, PUBLISHED, BROKER))
        else:
            yield _removed(replace(world, grant=(generation + 1, FREE, BROKER)))
    if not world.is_producer_alive and world.producer != SEATS[-1] and seat != world.producer:
        yield replace(world, is_producer_alive=True, producer=SEATS[-1])
    if cell[1] == TAKEN and (world.step == "dead" or not rules.taken_until_dead):
        yield replace(world, cell=(cell[0], DONE))
    if world.step == "dead" and cell[1] != TAKEN and world.readers < rules.readers:
        yield replace(world, step="idle", readers=world.readers + 1)


def _ended(world: World, rules: Rules) -> Iterator[World]:
    yield _removed(world)
    if rules.spared:
        yield replace(world, is_spare=True)


def _granted(world: World, rules: Rules) -> Iterator[World]:
    generation, _, _ = world.grant
    grant = (generation, IDLE, world.producer)
    if not world.is_spare:
        inode = world.inodes + 1
        for length in (SHORT, LONG):
            made = Segment(generation, inode, length, 0)
            yield replace(world, grant=grant, birth=generation, segments=world.segments | {made}, inodes=inode)
        return
    yield replace(world, grant=grant, is_spare=False)  # as it lies
    spare = world.named(world.birth)
    assert spare is not None
    if spare.length == SHORT:
        name = generation if rules.renamed_when_longer else world.birth
        longer = (world.segments - {spare}) | {spare._replace(name=name, length=LONG)}
        yield replace(world, grant=grant, is_spare=False, birth=name, segments=longer)


def _producer(world: World, rules: Rules) -> Iterator[World]:
    me = world.producer
    if world.to_post is not None:
        yield replace(drained(world, me), posted=world.posted | {world.to_post}, to_post=None)
        return
    generation, state, seat = world.seen_by(me, "grant")  # type: ignore[misc]
    if seat != me:
        return
    grown, birth = generation + 1, world.birth
    segment = world.named(birth)
    if segment is None:
        raise Violation("a writer has no segment")

    def leased(now: World, as_: int) -> World:
        now = store(now, rules, me, "grant", (as_, LEASED, me))
        return store(now, rules, me, "bytes", (segment.inode, as_))

    if state == IDLE:
        yield leased(world, generation)
        yield drained(store(world, rules, me, "grant", (grown, RETURNED, BROKER)), me)
    if state == LEASED:
        pending = store(world, rules, me, "cell", (generation, PENDING))
        for length in range(SHORT, segment.length + 1):
            handle = (generation, length)
            yield replace(store(pending, rules, me, "grant", (generation, PUBLISHED, BROKER)), to_post=handle)
            if rules.kept:
                yield replace(store(pending, rules, me, "grant", (generation, PUBLISHED, me)), to_post=handle)
        if rules.kept:
            yield store(world, rules, me, "grant", (grown, IDLE, me))
    if state == PUBLISHED and (world.seen_by(me, "cell") == (generation, DONE) or not rules.recycled_when_done):
        yield leased(world, grown)
        yield drained(store(world, rules, me, "grant", (grown, RETURNED, BROKER)), me)


def _reader(world: World, rules: Rules) -> Iterator[World]:
    if world.step == "dead":
        return
    yield replace(world.with_buffer(READER, ()), step="dead", map=None)
    (generation, state, _), cell = world.grant, world.seen_by(READER, "cell")
    is_good = state == PUBLISHED and cell == (world.handle[0], PENDING) and generation == world.handle[0]
    if world.step == "idle":
        for handle in world.posted:
            yield replace(world, step="has", handle=handle)
    elif world.step == "has":
        name = world.birth if rules.named_by_birth else world.handle[0]
        if world.map is not None and (world.map.name == name or not rules.maps_are_checked):
            yield replace(world, step="mapped")
        elif (segment := world.named(name)) is not None:
            yield replace(world, step="mapped", map=Map(name, segment.inode, segment.length))
        elif is_good:
            raise Violation("a good handle is refused: its segment is not found")
        else:
            yield replace(world, step="idle", map=None)
    elif world.step == "mapped":  # under the lock, whose calls are the kernel's
        world = drained(world, READER)
        yield replace(world, step="open", cell=(world.handle[0], TAKEN)) if is_good else replace(world, step="idle")
    elif world.step == "open":
        if rules.done_behind_the_view:
            yield replace(world, step="let go")
        else:
            yield replace(store(world, rules, READER, "cell", (world.handle[0], DONE)), step="looks on")
    elif world.step == "let go":
        yield replace(store(world, rules, READER, "cell", (world.handle[0], DONE)), step="idle")
    elif world.step == "looks on":
        yield replace(world, step="idle")


def check(world: World) -> None:
    if world.step not in ("open", "looks on"):
        return
    assert world.map is not None
    seen = next((one for one in world.segments if one.inode == world.map.inode), None)
    if seen is None:
        raise Violation("a reader looks at pages that are gone")
    if seen.content != world.handle[0]:
        raise Violation(f"a reader of generation {world.handle[0]} sees the bytes of {seen.content}")
    if world.map.length < world.handle[1]:
        raise Violation("a reader's map is shorter than what it has opened")


def explore(rules: Rules) -> tuple[int, str | None]:
    """How many states there are, and the first violation."""
    seen, left = {World()}, [World()]
    while left:
        world = left.pop()
        try:
            for after in steps(world, rules):
                check(after)
                newest = after.seen_by(after.producer, "grant")[0]  # type: ignore[index]
                if max(after.grant[0], newest) <= rules.generations and after not in seen:
                    seen.add(after)
                    left.append(after)
        except Violation as violation:
            return len(seen), str(violation)
    return len(seen), None


MODES = pytest.mark.parametrize("is_tso", [False, True], ids=["SC", "TSO"])


@pytest.mark.parametrize(
    ("generations", "is_tso"),
    [
        (2, False),
        pytest.param(2, True, marks=pytest.mark.long),
        *(pytest.param(3, is_tso, marks=pytest.mark.exhaustive) for is_tso in (False, True)),
    ],
)
def test_whoever_looks_sees_what_he_opened(generations: int, is_tso: bool) -> None:
    rules = Rules(is_tso=is_tso, generations=generations, readers=generations - 1)
    states, violation = explore(rules)
    assert violation is None
    assert states > explore(replace(rules, kept=False))[0], "nothing was ever kept"
    assert states > explore(replace(rules, spared=False))[0], "nothing was ever spare"


@MODES
@pytest.mark.parametrize(
    "without",
    [
        "named_by_birth", "maps_are_checked", "recycled_when_done", "freed_when_done", "renamed_when_longer",
        "taken_until_dead", "done_behind_the_view",
    ],
)  # fmt: skip
def test_every_mutant_is_found(without: str, is_tso: bool) -> None:
    _, violation = explore(replace(Rules(is_tso=is_tso), **{without: False}))  # type: ignore[arg-type]
    assert violation is not None
