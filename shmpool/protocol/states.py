"""A slot's life: the states of a row's grant word, and who may move it where.

The table :data:`TRANSITIONS` is the one place that says which moves exist. The core
checks its own moves against it, the tests check everybody's, and the picture in the
README is made from it (``python -m shmpool.protocol.states``).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class State(IntEnum):
    """The state byte of a grant word."""

    COLD = 0
    """No pages reserved; nobody's."""
    FREE = 1
    """Warm, on the broker's free list."""
    IDLE = 2
    """In a client's magazine."""
    LEASED = 3
    """Being written by its custodian."""
    PUBLISHED = 4
    """Readable with a ticket."""
    RETURNED = 5
    """Given back; the broker has not yet looked."""
    FOLLOWER = 6
    """A later chunk of a run; judged by its head."""


class CellState(IntEnum):
    """The state byte of a cell that no longer equals the published grant word."""

    TAKEN = 16
    DONE = 17
    BOUND = 18
    """No ticket, but behind the only one of a stream's chunk: the next word names its stream."""


class Actor(IntEnum):
    """Who makes a move: always the row's custodian before it."""

    BROKER = 0
    CLIENT = 1


class Transition(NamedTuple):
    """One move of a grant word; *bumps* says whether the generation grows by one."""

    source: State
    target: State
    actor: Actor
    bumps: bool
    label: str


TRANSITIONS: Final = (
    Transition(State.COLD, State.FREE, Actor.BROKER, False, "warmed"),
    Transition(State.FREE, State.COLD, Actor.BROKER, False, "cooled"),
    Transition(State.FREE, State.IDLE, Actor.BROKER, False, "granted"),
    Transition(State.FREE, State.FOLLOWER, Actor.BROKER, False, "joins a run"),
    Transition(State.FOLLOWER, State.FREE, Actor.BROKER, True, "its run ended"),
    Transition(State.IDLE, State.LEASED, Actor.CLIENT, False, "leased"),
    Transition(State.LEASED, State.IDLE, Actor.CLIENT, True, "released unpublished"),
    Transition(State.LEASED, State.PUBLISHED, Actor.CLIENT, False, "published"),
    Transition(State.PUBLISHED, State.LEASED, Actor.CLIENT, True, "all tickets done: leased again"),
    Transition(State.PUBLISHED, State.PUBLISHED, Actor.CLIENT, False, "handed to the broker"),
    Transition(State.IDLE, State.RETURNED, Actor.CLIENT, True, "given back"),
    Transition(State.PUBLISHED, State.RETURNED, Actor.CLIENT, True, "all done: given back"),
    Transition(State.LEASED, State.RETURNED, Actor.CLIENT, True, "direct: released unpublished"),
    Transition(State.RETURNED, State.FREE, Actor.BROKER, False, "return seen"),
    Transition(State.IDLE, State.FREE, Actor.BROKER, True, "its client died"),
    Transition(State.LEASED, State.FREE, Actor.BROKER, True, "its client died"),
    Transition(State.PUBLISHED, State.FREE, Actor.BROKER, True, "publisher gone, all done"),
)

#: (source, target) -> whether the generation grows, for checkers.
ALLOWED: Final = {(move.source, move.target): move.bumps for move in TRANSITIONS}


def diagram() -> str:
    """The table as a Mermaid state diagram; a solid line each for broker and client."""
    lines = ["stateDiagram-v2", "    [*] --> COLD"]
    for move in TRANSITIONS:
        who = move.actor.name.lower()
        bump = ", generation + 1" if move.bumps else ""
        lines.append(f"    {move.source.name} --> {move.target.name}: {who}: {move.label}{bump}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
