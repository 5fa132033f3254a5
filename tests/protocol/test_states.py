"""The table of a slot's life is one that makes sense: no dead ends, no lost generation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shmpool.protocol.states import State
from shmpool.protocol.transitions import ALLOWED, TRANSITIONS, Actor, Transition, diagram

HELD = {State.IDLE, State.LEASED, State.PUBLISHED}


def test_the_index_agrees_with_the_table() -> None:
    assert len(ALLOWED) == len(TRANSITIONS), "one move for each pair of states"
    for move in TRANSITIONS:
        assert ALLOWED[move.source, move.target] is move.bumps


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_and_left(state: State) -> None:
    assert any(move.target is state and move.source is not state for move in TRANSITIONS)
    assert any(move.source is state and move.target is not state for move in TRANSITIONS)


def reachable(start: State) -> set[State]:
    found, open_states = {start}, [start]
    while open_states:
        state = open_states.pop()
        new = {move.target for move in TRANSITIONS if move.source is state} - found
        found |= new
        open_states += new
    return found


@pytest.mark.parametrize("state", State)
def test_every_state_leads_back_to_cold(state: State) -> None:
    assert State.COLD in reachable(state)
    assert reachable(State.COLD) == set(State)


def test_a_slot_that_was_written_is_never_written_again_under_the_same_generation() -> None:
    """Walks all paths from LEASED without a bump: none may lead to LEASED again."""
    seen: set[State] = set()
    ahead = [State.LEASED]
    while ahead:
        state = ahead.pop()
        for move in TRANSITIONS:
            if move.source is state and not move.bumps and move.target not in seen:
                assert move.target is not State.LEASED
                seen.add(move.target)
                ahead.append(move.target)
    assert seen == {State.PUBLISHED}


@pytest.mark.parametrize("move", TRANSITIONS, ids=lambda move: f"{move.source.name}-{move.target.name}")
def test_clients_touch_only_what_was_granted_to_them(move: Transition) -> None:
    if move.actor is Actor.CLIENT:
        assert move.source in HELD
        assert move.target in HELD | {State.RETURNED}


def test_the_broker_takes_from_the_living_only_what_they_returned() -> None:
    taken = [move for move in TRANSITIONS if move.actor is Actor.BROKER and move.source in HELD]
    assert taken
    assert all(move.bumps and move.target is State.FREE for move in taken)
    assert all("died" in move.label or "gone" in move.label for move in taken)


def test_only_reserved_pages_are_granted() -> None:
    assert {target for source, target in ALLOWED if source is State.COLD} == {State.FREE}


def test_the_diagram_shows_every_move() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == 2 + len(TRANSITIONS)
    for move in TRANSITIONS:
        assert any(f"{move.source.name} --> {move.target.name}: " in line and move.label in line for line in lines)


def test_the_diagram_can_be_printed_by_the_module() -> None:
    command = [sys.executable, "-m", "shmpool.protocol.transitions"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == diagram()
