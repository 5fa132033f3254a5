"""Supply: how a seat comes by slots when its magazines have none, over its link to the broker."""

from __future__ import annotations

import time

from ..errors import SharedMemoryFull
from ..link.helper import Helper
from ..link.link import Link
from ..link.prefetch import Prefetch
from ..link.refusals import Forked, discarded, refused
from ..link.requests import Request
from ..link.waiting import WORD
from ..protocol.codes import Code
from ..protocol.figures import MISSES, TIMEOUTS
from ..protocol.messages import Direct, Message, Refill
from ..protocol.sizing import TierKind
from ..system.memory import memory_groups
from ..system.outside import own
from .direct import DirectSlot
from .magazine import Magazine
from .recalls import Recalls
from .slot import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ..errors import ShmpoolError
    from ..protocol.messages import Refusal
    from ..system.memory import MemoryGroup

#: Seconds between two tries to reserve a direct segment's pages on a full host.
_RETRY_SECONDS: Final = 0.02


class Supply(Recalls):
    """What one seat asks the broker for, and tells it; the base of `Session`. Thread-safe."""

    link: Link
    prefetch: Prefetch
    helper: Helper

    # --- slots ---------------------------------------------------------------------------------------

    def obtain(self, magazine: Magazine, nbytes: int, timeout: float | None) -> Slot:
        """A slot when the magazine has none ready: reap, else ask the broker and wait for
        the grant or for an own slot that comes back. What neither slots nor runs can serve is a direct
        segment, as from `obtain_direct`; so is what a shelf has not. Raises LeaseTimeout, SharedMemoryFull."""
        if magazine.tier.kind is TierKind.DIRECT:
            return self.obtain_direct(nbytes, timeout)
        deferred = self.deferred
        deferred.look()  # at what this thread let go of just now, most likely
        slot = magazine.take()
        if slot is None and deferred.any:
            deferred.look_at_all()
            slot = magazine.take()
        if slot is not None:
            return slot
        queue = timeout != 0
        if not queue:
            self.prefetch.discard()  # nobody will be recalled for this request, so neither are we
        message = Refill(self.link.next_number(), magazine.tier.index, magazine.chunks, magazine.grow(), queue)
        slot = self._ask(Request(message, magazine), nbytes, timeout)
        if isinstance(slot, DirectSlot):
            return self._prepare(slot)
        self.count(MISSES)  # now: one that is refused is no lease, so neither a hit nor a miss
        return slot

    def obtain_direct(self, nbytes: int, timeout: float | None) -> DirectSlot:
        """A direct segment with its pages reserved, one that was kept or else a new one, open. Raises
        LeaseTimeout, or SharedMemoryFull when the host or this process's cgroup had no room within
        *timeout* seconds (None: the configured ones, 0: one try); nothing is leased then."""
        kept = self.segments.lease(nbytes)
        if kept is None and self.deferred.any and self.segments:
            self.deferred.look_at_all()
            kept = self.segments.lease(nbytes)
        if kept is not None:
            return kept
        seconds = self.lease_timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            slot = self._obtain_granted(nbytes, timeout)
            try:
                return self._prepare(slot)
            except own(SharedMemoryFull):
                left = deadline - time.monotonic()
                # The broker looks at /dev/shm before it grants; whoever was faster, or our own cgroup, may
                # have room again.
                if left <= 0 or self._is_never(nbytes) or not self.link.pause(min(_RETRY_SECONDS, left)):
                    raise
            timeout = max(0.001, deadline - time.monotonic())

    def _prepare(self, slot: DirectSlot) -> DirectSlot:
        """Open a direct segment that was granted, and reserve its pages. Raises SharedMemoryFull; it goes
        back then."""
        try:
            slot.open()
            slot.reserve(self._memory_groups())
        except BaseException:
            slot.close()
            self.return_to_broker([slot])
            raise
        return slot

    def _obtain_granted(self, nbytes: int, timeout: float | None) -> DirectSlot:
        """A direct segment's row, granted by the broker, maybe before it was needed."""
        started = time.monotonic()
        slot = self.prefetch.take(nbytes, timeout)
        if slot is None:
            seconds = self.lease_timeout if timeout is None else timeout
            waited = time.monotonic() - started  # for the prefetched one
            if waited >= seconds + WORD and not self.link.is_discarding:  # the broker had its word, too
                raise self._refused(None, nbytes, waited)
            if timeout != 0:
                timeout = max(0.001, seconds - waited)
            message = Direct(self.link.next_number(), nbytes, timeout != 0)
            slot = self._ask(Request(message), nbytes, timeout)
        self.prefetch.ask(nbytes)
        assert isinstance(slot, DirectSlot)
        return slot

    #: Not a `functools.cached_property`: before Python 3.12 that has one lock for all sessions, which
    #: a forked child would find taken for ever.
    _groups: list[MemoryGroup] | None = None

    def _memory_groups(self) -> list[MemoryGroup]:
        """What limits the memory of this process, which is charged for direct segments."""
        if self._groups is None:
            self._groups = memory_groups()
        return self._groups

    def _is_never(self, nbytes: int) -> bool:
        """Whether a cgroup will not hold so much even when all else in it has gone."""
        limits = [group.limit() for group in self._memory_groups()]
        return any(limit is not None and limit < nbytes for limit in limits)

    def _ask(self, request: Request, nbytes: int, timeout: float | None) -> Slot:
        if self.is_abandoned:
            raise Forked
        self.helper.stand_by()
        slot = self.link.ask(request, timeout)
        if self.is_abandoned:  # a child of that wait: what was granted is the parent's
            raise Forked
        started, message = request.began, request.message
        assert isinstance(message, Refill | Direct)
        is_over_quota = slot is None and _is_over_quota(request)
        has_let_go = is_over_quota and self.let_go_of_idle()
        is_silent = request.is_waiting  # it would say nothing the second time, either
        if slot is None and (has_let_go or (not message.queue and not is_silent and (self.segments or is_over_quota))):
            if not message.queue:
                # Who does not wait is not recalled either: what lies idle here may be all that is in the way.
                self.prefetch.discard()
                self.return_all()
            request = Request(message._replace(request=self.link.next_number()), request.magazine)
            slot = self.link.ask(request, timeout)
        if slot is not None:
            return slot
        if self.link.is_discarding:
            raise self.discarded()
        raise self._refused(request.refusal, nbytes, time.monotonic() - started)

    def discarded(self) -> ShmpoolError:
        """The error for a request that nobody waits for any more (`link.is_discarding`)."""
        return discarded(is_closing=self.is_closing, is_abandoned=self.is_abandoned, is_over=self.is_over)

    def _refused(self, refusal: Refusal | None, nbytes: int, waited: float) -> ShmpoolError:
        error = refused(refusal, nbytes, waited, "" if self.link.connection else self.address)
        if isinstance(error, TimeoutError):
            self.count(TIMEOUTS)
        return error

    # --- to the broker -------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        self.link.send(message)

    def ring(self, row: int) -> None:
        self.link.ring(row)

    def ring_soon(self, row: int) -> None:
        self.link.bells.soon(row)

    def ring_all(self, rows: list[int]) -> None:
        self.link.bells.now(*rows)
        self.link.send_bells()

    def watch(self) -> None:
        """Have the helper look now and then whether something was left open."""
        raise NotImplementedError

    def wake_helper(self) -> None:
        self.link.wake()

    def let_go_of_idle(self) -> bool:
        """Let go of what is shared and that nobody looks through just now; False when there is nothing."""
        raise NotImplementedError

    # --- what the helper does ------------------------------------------------------------------------

    def answer_recall(self) -> None:
        """Somebody waits: give back what is idle here."""
        self.is_wanted = False
        self.link.serve()
        self.prefetch.discard()
        self.return_idle()

    def look_after_rested(self) -> bool:
        """Return what was not used, and have the counters up to date; False when nothing idle is left."""
        self.note_timed()
        is_prefetched = self.prefetch.discard_rested()
        return self.return_rested() or is_prefetched


def _is_over_quota(request: Request) -> bool:
    return request.refusal is not None and request.refusal.code == Code.QUOTA
