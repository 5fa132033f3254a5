"""What is wrong once nothing happens any more: a slot that is lost, a ticket that a dead reader
keeps, a seat that nobody ends, a waiter that is not served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmpool.protocol.ledger import generation_of, seat_of, state_of, tickets_of
from shmpool.protocol.states import CellState, State

from .memory import describe
from .states import Draft

if TYPE_CHECKING:
    from .world import World


def complaint(world: World, draft: Draft) -> str | None:
    """What is wrong with a state in which nothing happens any more."""
    layout = world.layout
    grant = draft.memory[layout.grant]
    holder, is_held = seat_of(grant), world.is_living(draft, seat_of(grant))
    cells = [draft.memory[number] for number in layout.cells[: tickets_of(draft.memory[layout.extent])]]
    cells = [cell for cell in cells if generation_of(cell) == generation_of(grant)]
    for number in layout.cells:
        cell = draft.memory[number]
        if state_of(cell) == CellState.TAKEN and not world.is_living(draft, seat_of(cell)):
            return f"a dead reader's ticket stays open: {describe(cell)}"
    for seat, number in layout.seat_states.items():
        if draft.memory[number] and not world.is_living(draft, seat):
            return f"seat {seat} is nobody's and not cleared"
    is_open = any(_is_held(world, draft, at, cell) for at, cell in enumerate(cells))
    # One that stopped after its store and before its message: its death will tell, where no sweep does.
    may_stop = draft.paused and not world.scenario.chores.sweeps
    is_untold = may_stop and draft.nodes[world.broker_at].request[2:3] != (True,)
    if state_of(grant) in (State.FREE, State.COLD):
        lost = "ready" not in draft.nodes[world.broker_at].marks
    elif state_of(grant) == State.PUBLISHED and holder == 0:
        lost = not is_open and not is_untold
    elif state_of(grant) == State.RETURNED:
        lost = not is_untold
    else:
        lost = holder == 0 or not is_held
    if lost:
        return f"the slot is lost: {describe(grant)}, cells {[describe(cell) for cell in cells]}"
    return _starving(world, draft, grant, any(state_of(cell) != CellState.DONE for cell in cells))


def _is_held(world: World, draft: Draft, at: int, cell: int) -> bool:
    """A ticket that may stay out: open, or unopened while nothing expires, while its publisher
    lives, or while somebody has stopped in the middle of opening it."""
    if state_of(cell) == State.PUBLISHED:
        return not world.scenario.expiry or world.layout.at + at in draft.locks or world.is_living(draft, seat_of(cell))
    return state_of(cell) == CellState.TAKEN


def _starving(world: World, draft: Draft, grant: int, is_open: bool) -> str | None:
    waiting = [
        node.machine.name
        for party, node in enumerate(draft.nodes)
        if draft.alive >> party & 1 and not draft.paused >> party & 1 and "waiting" in node.marks
    ]
    stopped = [node.seat for party, node in enumerate(draft.nodes) if draft.paused >> party & 1]
    excused = (
        seat_of(grant) in stopped
        or (state_of(grant) == State.RETURNED and stopped and not world.scenario.chores.sweeps)
        or state_of(grant) == State.LEASED
        or (state_of(grant) == State.PUBLISHED and is_open)
    )
    return f"{waiting} wait for ever, the slot says {describe(grant)}" if waiting and not excused else None
