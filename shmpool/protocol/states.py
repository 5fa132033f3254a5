"""A slot's life: the states of a row's grant word, and of a cell. Who may move it where: `transitions`."""

from __future__ import annotations

from enum import IntEnum


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
