"""Forks: what is global in a process that forks, and pages that hold a byte's lock.

A page is mapped by a process and, after a fork, by its child, until each drops it; the world counts
them. All parties are one process here, so each has its own of what the product has once.
"""

from __future__ import annotations

from typing import Any

from shmpool.life import forks
from shmpool.seat import guards
from shmpool.seat.session import Session
from shmpool.system import heirs
from shmpool.system.here import COPIED, FORKING, HERE, OURS, UNSHARED

from .machines import Context

WORDS = max(OURS, UNSHARED, COPIED, FORKING) + 1


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
    """`heirs.hold_fork`: the descriptor is a page of its own here, which the child drops first."""
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
        self.here = [1, 1, 1, 0]
        self.forks = forks._Forks()
        self.sessions: set[Session] = set()
        self.ended = 0
        self.all: set[Any] = set()
        self._others: tuple[Any, ...] = ()

    def enter(self) -> None:
        """Its code runs from here on."""
        self._others = (forks._forks, forks.sessions, guards.forks_ended, guards._all, HERE[:WORDS].tolist())
        self._set(self.forks, self.sessions, self.ended, self.all, self.here)

    def leave(self) -> None:
        """Until here."""
        self.ended, self.here = guards.forks_ended, HERE[:WORDS].tolist()
        self._set(*self._others)

    def _set(self, one: Any, sessions: Any, ended: int, held: Any, here: list[int]) -> None:
        forks._forks, forks.sessions = one, sessions  # type: ignore[misc]
        guards.forks_ended, guards._all = ended, held  # type: ignore[misc]
        for word, value in enumerate(here):
            HERE[word] = value

    @property
    def key(self) -> tuple[Any, ...]:
        """What of it decides what comes next; while its own code runs."""
        return (*HERE[:WORDS], guards.forks_ended, len(guards._all))
