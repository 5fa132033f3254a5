"""A slot's life: who may move a row's grant word from which state to which.

The table :data:`TRANSITIONS` is the one place that says which moves exist. The core
checks its own moves against it, the tests check everybody's, and the picture in the
README is made from it (``python -m shmpool.protocol.transitions``). Workers do without it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from .states import State


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
