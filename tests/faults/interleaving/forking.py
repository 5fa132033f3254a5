"""Forks: what is global in a process that forks, and pages that hold a byte's lock.

A page is mapped by a process and, after a fork, by its child, until each drops it; the world counts
them. All parties are one process here, so each has its own of what the product has once.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from shmpool.life import forks
from shmpool.seat import guards
from shmpool.seat.session import Session
from shmpool.system import heirs
from shmpool.system.here import COPIED, FORKING, FORKS, GUARDED, HELPERS, HERE, NOTED, OURS, UNSHARED, WORKING

from .machines import Context

WORDS = max(OURS, UNSHARED, COPIED, NOTED, FORKING, GUARDED, WORKING, FORKS, HELPERS) + 1


class Page:
    """Stands for `heirs.Page`: it goes with its last reference."""

    def __init__(self, context: Context, offset: int) -> None:
        self._context = context
        self._offset = offset

    def __del__(self) -> None:
        self._context.unmapped.append(self._offset)


def hold_anew(pool_id: int, offset: int) -> Page:
    """`heirs.hold_anew`."""
    context = Context.current
    assert context is not None
    if context.memory is None:
        context.ask("hold", offset)
    return Page(context, offset)


def hold_fork(pool_id: int, seat: int, fork: int) -> tuple[Page, Page]:
    """`heirs.hold_fork`."""
    copies = hold_anew(pool_id, heirs.copies_at(seat, fork))
    return copies, hold_anew(pool_id, heirs.guard_at(seat, fork))


def is_held(fd: int, offset: int) -> bool:
    """`heirs.is_held`."""
    context = Context.current
    assert context is not None
    return bool(context.ask("held", offset))


def guards_of(session: Session) -> tuple[int, ...]:
    """The bytes that the helper of a session looks at."""
    guards, seat = session.guards._guards, session.seat
    copies = [heirs.copies_at(seat, guard.number) for guard in guards if guard.copied]
    return (*[heirs.guard_at(seat, guard.number) for guard in guards], *copies)


class Process:
    """One party's own of the globals of `life.forks`, `seat.guards` and `system.here`."""

    def __init__(self) -> None:
        self.here = [1, 1, 1, 1, 0, 1, 0, 0]
        self.stopped: set[Session] = set()
        self.sessions: set[Session] = set()
        self.numbers = count(1)
        self.seats: set[guards.Guards] = set()
        self.all: set[Any] = set()
        self.noting: dict[int, list[int]] = {}
        self._others: tuple[Any, ...] = ()

    def enter(self) -> None:
        """Its code runs from here on."""
        self._others = (
            (forks._stopped, forks.sessions),
            (guards._numbers, guards._seats, guards._all, guards._noting),
            HERE[:WORDS].tolist(),
        )
        self._set((self.stopped, self.sessions), (self.numbers, self.seats, self.all, self.noting), self.here)

    def leave(self) -> None:
        """Until here."""
        self.here = HERE[:WORDS].tolist()
        self._set(*self._others)

    def _set(self, hooks: Any, guarded: Any, here: list[int]) -> None:
        forks._stopped, forks.sessions = hooks  # type: ignore[misc]
        guards._numbers, guards._seats, guards._all, guards._noting = guarded  # type: ignore[misc]
        for word, value in enumerate(here):
            HERE[word] = value

    @property
    def key(self) -> tuple[Any, ...]:
        """What of it decides what comes next; while its own code runs."""
        words = [bool(word) for word in HERE[:WORDS]]  # FORKING is a thread
        return (*words, repr(guards._numbers), len(guards._all), len(guards._noting))
