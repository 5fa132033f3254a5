"""A queue as one process has it: what is done to it besides `put` and `get`, and its end."""

from __future__ import annotations

from fcntl import fcntl
from typing import TYPE_CHECKING, Final

from ..system import futex
from ..system.here import HERE, OURS
from ..system.locks import F_OFD_SETLK
from ..system.patience import Patience
from .getting import Getting
from .layout import HEAD, ODD, RINGS, TAIL, Odd
from .members import Members
from .memory import ALL
from .threads import Thread, raise_interrupted

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
        thread = self.threads.mine()
        before = thread.holds
        try:
            thread.holds = (self.tail_end, self.head_end, *before)
            self.tail_end.acquire(thread, _FOR_EVER)
            self.head_end.acquire(thread, _FOR_EVER)
            members.join()
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, self.tail_end.unlock)
                fcntl(thread.fd, F_OFD_SETLK, self.head_end.unlock)
            finally:
                thread.holds = before

    # --- join, shutdown --------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Items of a joinable queue that were put and not finished."""
        size = self.size  # first: what is taken meanwhile counts twice, not never
        if self.hands is not None:
            return size + self.hands.count
        return max(0, size + self.members.unfinished) if self.members is not None else size

    def note_done(self, thread: Thread) -> None:
        """An item is finished. Raises ValueError for more than were put."""
        words, end = self.words, self.tail_end
        before = thread.holds
        if end in before:
            raise_interrupted()
        is_all = False
        try:
            thread.holds = (end, *before)
            end.acquire(thread, _FOR_EVER)
            self._check_open()
            unfinished = self.unfinished
            if not unfinished:
                raise ValueError("task_done() called too many times")
            if self.hands is not None:
                self.hands.release_oldest()
            elif self.members is not None:
                self.members.note_done()
            is_all = unfinished == 1
            if is_all:
                words[RINGS] += 1
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, end.unlock)
            finally:
                thread.holds = before
        if is_all:
            futex.wake(self.rings_at, ALL)

    def wait_finished(self) -> None:
        """Wait until all that was put is finished. What a dead consumer had in its hands is."""
        words, patience = self.words, Patience(_FOR_EVER)
        while True:
            rings = words[RINGS]
            if not self.unfinished:
                return
            patience.sleep(self.rings_at, rings)
            self._check_here()

    def shut(self, thread: Thread, *, immediate: bool) -> None:
        """No more puts; *immediate*: what is in it is discarded, and finished."""
        words, tail_end, head_end = self.words, self.tail_end, self.head_end
        before = thread.holds
        if tail_end in before or head_end in before:
            raise_interrupted()
        try:
            thread.holds = (tail_end, head_end, *before)
            tail_end.acquire(thread, _FOR_EVER)
            if words[ODD] & Odd.INTENTS:
                self._discard_intents()
            words[ODD] |= Odd.SHUT | Odd.SHUT_AT_ONCE if immediate else Odd.SHUT
            if immediate:
                head_end.acquire(thread, _FOR_EVER)
                self.discard_items(ALL)
            words[RINGS] += 1
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, tail_end.unlock)
                fcntl(thread.fd, F_OFD_SETLK, head_end.unlock)
            finally:
                thread.holds = before
        for at in (self.tail_at, self.head_at, self.rings_at):
            futex.wake(at, ALL)
        if words[ODD] & Odd.WATCHED:
            self.bell.ring()

    def watch(self, thread: Thread) -> int:
        """The descriptor that is readable when something was put; see `bell`."""
        words, end = self.words, self.tail_end
        fd = self.bell.open()
        before = thread.holds
        if end in before:
            raise_interrupted()
        try:
            thread.holds = (end, *before)
            end.acquire(thread, _FOR_EVER)
            words[ODD] |= Odd.WATCHED
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, end.unlock)
            finally:
                thread.holds = before
        if words[TAIL] != words[HEAD] or words[ODD] & Odd.SHUT:
            self.bell.ring()
        return fd

    # --- its end ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave it; calls that are under way in other threads raise. Twice is fine."""
        if self.is_closed:
            return
        session = self.session
        if HERE[OURS] and not session.is_over:
            if self.hands is not None:
                self.hands.release_all()
            thread = self.threads.mine()
            before = thread.holds
            try:
                # Whoever is inside comes out first: what he puts must not come behind our word that we are gone.
                if not before:
                    self.tail_end.acquire(thread, 0)
                    self.head_end.acquire(thread, 0)
                self.is_closed = True
            finally:
                fcntl(thread.fd, F_OFD_SETLK, self.tail_end.unlock)
                fcntl(thread.fd, F_OFD_SETLK, self.head_end.unlock)
            for at in (self.tail_at, self.head_at):
                futex.wake(at, ALL)  # of this process's threads, too: they see that it is closed
        self.is_closed = True
        self.bell.close()
        self._buffer.release()

    def abandon(self) -> None:
        """Nobody has it any more, and this may be a finalizer: as `close`, without a lock and without a word."""
        self.is_closed = True
        if self.hands is not None and HERE[OURS] and not self.session.is_over:
            self.hands.abandon()
        self.bell.close()
