"""Direct segments that are kept, as a model: every order of every step of a producer, a reader and a broker.

The explorer (`interleaving`) runs the real code over one slot, whose memory stays. Here memory
comes and goes, and a reader's map may be of a segment that is no more: one row, whose segment has
the row's birth for its name; a producer that publishes, keeps or passes on, recycles, returns or
dies; a reader that maps before it takes its ticket and keeps its map. Whoever looks sees the bytes
of the publication that he opened, in pages that are there, and no good handle is refused. Each of
the mutants leaves one ingredient out, and is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

FREE, IDLE, LEASED, PUBLISHED, RETURNED = "FREE", "IDLE", "LEASED", "PUBLISHED", "RETURNED"
PENDING, TAKEN, DONE = "PENDING", "TAKEN", "DONE"
BROKER, PRODUCER = 0, 1
MOST_GENERATIONS = 4


class Violation(Exception):
    pass


@dataclass(frozen=True)
class World:
    """*segments* are (birth, the generation whose bytes lie there); *posted* the generations of handles
    on their way, that may come twice."""

    generation: int = 1
    state: str = FREE
    seat: int = BROKER
    birth: int = 0
    cell: tuple[int, str] = (0, DONE)
    segments: frozenset[tuple[int, int]] = frozenset()
    posted: frozenset[int] = frozenset()
    is_producer_alive: bool = True
    #: What the reader does: nothing, has a handle, has mapped what it names, has opened it.
    step: str = "idle"
    handle: int = 0
    map: int | None = None

    def content(self, birth: int | None) -> int | None:
        return dict(self.segments).get(birth) if birth is not None else None

    def without(self, birth: int) -> frozenset[tuple[int, int]]:
        return frozenset(one for one in self.segments if one[0] != birth)


@dataclass(frozen=True)
class Rules:
    """What a mutant leaves out."""

    named_by_birth: bool = True
    maps_are_checked: bool = True
    recycled_when_done: bool = True
    freed_when_done: bool = True
    kept: bool = True


def steps(world: World, rules: Rules) -> Iterator[World]:
    yield from _broker(world, rules)
    if world.is_producer_alive:
        yield from _producer(world, rules)
    yield from _reader(world, rules)


def _broker(world: World, rules: Rules) -> Iterator[World]:
    is_done = world.cell == (world.generation, DONE) or not rules.freed_when_done
    if world.state == FREE and world.is_producer_alive:
        birth = world.generation
        yield replace(world, state=IDLE, seat=PRODUCER, birth=birth, segments=world.without(birth) | {(birth, 0)})
    if world.state == RETURNED:
        yield replace(world, state=FREE, seat=BROKER, segments=world.without(world.birth))
    if world.state == PUBLISHED and world.seat == BROKER and is_done:
        yield replace(world, generation=world.generation + 1, state=FREE, segments=world.without(world.birth))
    if not world.is_producer_alive and world.seat == PRODUCER:  # its death is swept
        if world.state == PUBLISHED:
            yield replace(world, seat=BROKER)
        else:
            yield replace(
                world, generation=world.generation + 1, state=FREE, seat=BROKER, segments=world.without(world.birth)
            )


def _producer(world: World, rules: Rules) -> Iterator[World]:
    if world.seat != PRODUCER:
        return
    grown = world.generation + 1
    is_done = world.cell == (world.generation, DONE) or not rules.recycled_when_done
    yield replace(world, is_producer_alive=False)
    if world.state == IDLE:
        yield _written(replace(world, state=LEASED))
        yield replace(world, generation=grown, state=RETURNED, seat=BROKER)
    if world.state == LEASED:
        published = replace(
            world, state=PUBLISHED, cell=(world.generation, PENDING), posted=world.posted | {world.generation}
        )
        yield replace(published, seat=BROKER)
        if rules.kept:
            yield published
            yield replace(world, generation=grown, state=IDLE)
    if world.state == PUBLISHED and is_done:
        yield _written(replace(world, generation=grown, state=LEASED))
        yield replace(world, generation=grown, state=RETURNED, seat=BROKER)


def _written(world: World) -> World:
    """The writer writes what only this generation's readers may see."""
    if world.content(world.birth) is None:
        raise Violation("a writer has no segment")
    return replace(world, segments=world.without(world.birth) | {(world.birth, world.generation)})


def _reader(world: World, rules: Rules) -> Iterator[World]:
    is_good = world.state == PUBLISHED and world.cell == (world.handle, PENDING) and world.generation == world.handle
    if world.step == "idle":
        for handle in world.posted:
            yield replace(world, step="has", handle=handle)
    elif world.step == "has":
        name = world.birth if rules.named_by_birth else world.handle
        if world.map == name or (world.map is not None and not rules.maps_are_checked):
            yield replace(world, step="mapped")
        elif world.content(name) is not None:
            yield replace(world, step="mapped", map=name)
        elif is_good:
            raise Violation("a good handle is refused: its segment is not found")
        else:
            yield replace(world, step="idle", map=None)
    elif world.step == "mapped":
        yield replace(world, step="open", cell=(world.handle, TAKEN)) if is_good else replace(world, step="idle")
    elif world.step == "open":
        seat = world.seat if world.state == PUBLISHED else BROKER
        yield replace(world, step="idle", cell=(world.handle, DONE), map=world.map if seat else None)


def check(world: World) -> None:
    if world.step != "open":
        return
    seen = world.content(world.map)
    if seen is None:
        raise Violation("a reader looks at pages that are gone")
    if seen != world.handle:
        raise Violation(f"a reader of generation {world.handle} sees the bytes of {seen}")


def explore(rules: Rules) -> tuple[int, str | None]:
    """How many states there are, and the first violation."""
    seen, left = {World()}, [World()]
    while left:
        world = left.pop()
        try:
            for after in steps(world, rules):
                check(after)
                if after.generation <= MOST_GENERATIONS and after not in seen:
                    seen.add(after)
                    left.append(after)
        except Violation as violation:
            return len(seen), str(violation)
    return len(seen), None


def test_whoever_looks_sees_what_he_opened() -> None:
    states, violation = explore(Rules())
    assert violation is None
    assert states > 1000
    assert states > explore(Rules(kept=False))[0], "nothing was ever kept"


@pytest.mark.parametrize(
    "without",
    ["named_by_birth", "maps_are_checked", "recycled_when_done", "freed_when_done"],
)
def test_every_mutant_is_found(without: str) -> None:
    _, violation = explore(replace(Rules(), **{without: False}))
    assert violation is not None
