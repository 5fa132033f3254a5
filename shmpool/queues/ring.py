"""A queue as one process has it: what is done to it besides `put` and `get`, and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol.queues import HEAD, ODD, RINGS, TAIL, Odd
from ..system import futex
from ..system.here import HERE, OURS
from ..system.patience import Patience
from .getting import Getting
from .members import Members
from .memory import ALL

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..shared import Shared

_FOR_EVER: Final = float("inf")


class Ring(Getting):
    """One queue in one process, of one session. Thread-safe."""

    def __init__(self, pool: BasePool, shared: Shared) -> None:
        super().__init__(pool, shared)
        if self.members is not None:
            self._join(self.members)

    def _join(self, members: Members) -> None:
        self.under(self.tail_end, _FOR_EVER, self.under, self.head_end, _FOR_EVER, members.join)

    # --- join, shutdown --------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Items of a joinable queue that were put and not finished."""
        size = self.size  # first: what is taken meanwhile counts twice, not never
        if self.hands is not None:
            return size + self.hands.count
        return max(0, size + self.members.unfinished) if self.members is not None else size

    def note_done(self) -> None:
        """An item is finished. Raises ValueError for more than were put."""
        if self.under(self.tail_end, _FOR_EVER, self._note_done):
            futex.wake(self.rings_at, ALL)

    def _note_done(self) -> bool:
        """Under T: whether it was the last one."""
        self._check_open()
        unfinished = self.unfinished
        if not unfinished:
            raise ValueError("task_done() called too many times")
        if self.hands is not None:
            self.hands.release_oldest()
        elif self.members is not None:
            self.members.note_done()
        if unfinished == 1:
            self.words[RINGS] += 1
        return unfinished == 1

    def wait_finished(self) -> None:
        """Wait until all that was put is finished. What a dead consumer had in its hands is."""
        words, patience = self.words, Patience(_FOR_EVER)
        while True:
            rings = words[RINGS]
            if not self.unfinished:
                return
            patience.sleep(self.rings_at, rings)
            self._check_here()

    def shut(self, *, immediate: bool) -> None:
        """No more puts; *immediate*: what is in it is discarded, and finished."""
        self.under(self.tail_end, _FOR_EVER, self._shut, immediate)
        for at in (self.tail_at, self.head_at, self.rings_at):
            futex.wake(at, ALL)
        if self.words[ODD] & Odd.WATCHED:
            self.bell.ring()

    def _shut(self, immediate: bool) -> None:
        """Under T."""
        words = self.words
        if words[ODD] & Odd.INTENTS:
            self._discard_intents()
        words[ODD] |= Odd.SHUT | Odd.SHUT_AT_ONCE if immediate else Odd.SHUT
        if immediate:
            self.under(self.head_end, _FOR_EVER, self.discard_items, ALL)
        words[RINGS] += 1

    def watch(self) -> int:
        """The descriptor that is readable when something was put; see `bell`."""
        words = self.words
        fd = self.bell.open()
        self.under(self.tail_end, _FOR_EVER, self._note_watched)
        if words[TAIL] != words[HEAD] or words[ODD] & Odd.SHUT:
            self.bell.ring()
        return fd

    def _note_watched(self) -> None:
        self.words[ODD] |= Odd.WATCHED

    # --- its end ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave it; calls that are under way in other threads raise. Twice is fine."""
        if self.is_closed:
            return
        session = self.session
        if HERE[OURS] and not session.is_over:
            if self.hands is not None:
                self.hands.release_all()
            # Whoever is inside comes out first: what he puts must not come behind our word that we are gone.
            if not (self.tail_end.has_gate() or self.head_end.has_gate()):
                self.under(self.tail_end, 0, self.under, self.head_end, 0, self._note_closed)
            self.is_closed = True
            for at in (self.tail_at, self.head_at):
                futex.wake(at, ALL)  # of this process's threads, too: they see that it is closed
        self.is_closed = True
        self.bell.close()
        self._buffer.release()

    def _note_closed(self) -> None:
        self.is_closed = True

    def abandon(self) -> None:
        """Nobody has it any more, and this may be a finalizer: as `close`, without a lock and without a word."""
        self.is_closed = True
        if self.hands is not None and HERE[OURS] and not self.session.is_over:
            self.hands.abandon()
        self.bell.close()
