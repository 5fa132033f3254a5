"""A seat, as its parts see it: its maps, what has become of it, and what they call upwards.

`Session` is the whole; nothing that a session is made of knows it. What slots and leases ask of
their seat besides stands in `seat.slot.Keeper`, what tickets and buffers ask in
`seat.records.Reader`.
"""

from __future__ import annotations

from ..protocol.figures import CATEGORIES, LATENCIES, LATENCY_WORDS, LEASES, STRATEGIES, TO_BUCKET, spread
from ..protocol.messages import Message
from .mapping import Mapping
from .sites import Sites

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: With `detailed_metrics` so many leases of a category are told at once: they share what the stores cost.
TOLD_AT_ONCE: Final = 512


class Seat(Mapping):
    """One seat in one pool."""

    #: Views at publish and release are errors.
    strict: bool

    def __init__(self) -> None:
        super().__init__()
        #: Nothing is stored for it any more: it was given up, or is the parent's of this fork.
        self.is_over = False
        #: Its pool is being closed, or was.
        self.is_closing = False
        #: The seat is that of the process that forked this one.
        self.is_abandoned = False
        #: It has no pool any more, which was closed or collected: its helper closes it once nothing
        #: is in use.
        self.is_orphaned = False
        #: The interpreter ends.
        self.is_at_exit = False
        #: A release saw the wanted flag.
        self.is_wanted = False
        #: The seat lives, and the helper looks now and then whether something was left open.
        self.is_watched = False
        #: The last fork that is over: what is opened from now on waits for no child of it.
        self.forks = 0
        #: With `detailed_metrics`: how many nanoseconds leases took, by category, as far as the counters do
        #: not say so yet. To append here costs a fifth of what the stores there cost; the compiled client's cost
        #: less than that.
        self._timed: tuple[list[float], ...] = tuple([] for _ in CATEGORIES)
        #: The same by the counters of the leases, so that the hot path looks one thing up.
        self.timed: dict[int, list[float]] = {}
        #: Who leased and opened what, where that is noted.
        self.sites = Sites()

    # --- what calls upwards ------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message to the broker, and the bells that are left with it."""
        raise NotImplementedError

    def ring(self, row: int) -> None:
        """Have the broker look at a row at once. Not for finalizers."""
        raise NotImplementedError

    def ring_soon(self, row: int) -> None:
        """Have the broker look at a row with the next message. Takes no lock that a finalizer could
        meet."""
        raise NotImplementedError

    def ring_all(self, rows: list[int]) -> None:
        """Have the broker look at rows at once, or as soon as it is there again."""
        raise NotImplementedError

    def wake_helper(self) -> None:
        """Make the helper thread look at what is left for it."""
        raise NotImplementedError

    def written_rows(self) -> set[int]:
        """The rows of what is leased, and of what its writers still see."""
        raise NotImplementedError

    # --- figures -----------------------------------------------------------------------------------

    def _make_timed(self) -> None:
        kinds = len(STRATEGIES) * len(CATEGORIES)
        self.timed = {self.counters + LEASES + kind: self._timed[kind % len(CATEGORIES)] for kind in range(kinds)}

    def count(self, figure: int) -> None:
        """Add one to a counter of this seat. Once it is over its counters are another's: nothing is called between
        the look and the store, so no other thread comes between them."""
        if not self.is_over:
            self.words[self.counters + figure] += 1

    def note_latency(self, category: int, nanoseconds: int) -> None:
        """A lease of a category was timed, one of some."""
        timed = self.counters + LATENCIES + LATENCY_WORDS * category
        bucket = timed + TO_BUCKET[nanoseconds.bit_length()]
        if not self.is_over:  # as in `count`
            self.words[timed] += nanoseconds
            self.words[bucket] += 1

    def note_timed(self, least: int = 1) -> None:
        """Have the counters say what `timed` says of a category, if it is *least* leases: when there are
        many, for `Pool.stats`, at the end, and by the helper after a second or so. So much is missing of
        a process that is killed. By any thread."""
        words, at = self.words, self.counters + LATENCIES
        for latencies in () if self.is_over else self._timed:
            if len(latencies) >= least:
                taken = latencies[:]
                del latencies[: len(taken)]  # others append meanwhile
                words[at] += round(sum(taken))
                for bucket, count in spread(taken):
                    words[at + bucket] += count
            at += LATENCY_WORDS
