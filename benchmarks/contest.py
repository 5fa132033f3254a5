"""A contest between pairs of processes: who takes part, in which modes, and the laps of all
of them interleaved. `handoff`, `stream` and `strategies` are made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from .measure import Contestant, Series, interleave
from .options import Options
from .pair import Entry, Pair, PairFailed
from .peers.base import Absent
from .plan import Plan
from .render import console
from .units import KIB, MIB

SIZES = tuple(size * KIB for size in (1, 4, 16, 64, 128, 256, 512, 768, 1024, 4096, 10240))
ROUNDS = 5
SECONDS = 0.04
#: From here on an object is very large, and by default a direct segment.
VERY_LARGE = MIB

OURS, CHUNKED, FLOOR = "shmpool", "shmpool chunked", "floor"
COMPILED, COMPILED_CHUNKED = "shmpool compiled", "compiled chunked"
#: The same with a queue of the pool's for the tokens.
COMPILED_QUEUE, COMPILED_QUEUE_CHUNKED = "compiled queue", "compiled queue chunked"
FRESH, PIPE, QUEUE, PYZMQ, PLASMA = "fresh segment", "Pipe", "Queue", "pyzmq", "Plasma"
ICEORYX2, ICEORYX2_VIEWS, ICEORYX2_EVENT = "iceoryx2 poll", "iceoryx2 views", "iceoryx2 event"
KICKMSG, CLOUDTOID = "kickmsg poll", "cloudtoid-interprocess poll"

_LIMIT = {"memory_limit": "1GiB"}
_CHUNKED = {**_LIMIT, "very_large_object_threshold": "16MiB"}
#: Which client it is, and so how tickets are taken: under byte locks, or by compare-and-swap.
_PLAIN, _BUILT = {"SHMPOOL_PURE": "1"}, {"SHMPOOL_PURE": ""}
ENTRIES = (
    Entry(OURS, "shmpool", _LIMIT, _PLAIN),
    Entry(CHUNKED, "shmpool", _CHUNKED, _PLAIN, from_nbytes=VERY_LARGE),
    Entry(COMPILED, "shmpool", {**_LIMIT, "is_compiled": True}, _BUILT),
    Entry(COMPILED_CHUNKED, "shmpool", {**_CHUNKED, "is_compiled": True}, _BUILT, from_nbytes=VERY_LARGE),
    Entry(COMPILED_QUEUE, "shmpool queue", {**_LIMIT, "is_compiled": True}, _BUILT, only_spins=True),
    Entry(
        COMPILED_QUEUE_CHUNKED,
        "shmpool queue",
        {**_CHUNKED, "is_compiled": True},
        _BUILT,
        from_nbytes=VERY_LARGE,
        only_spins=True,
    ),
    Entry(FLOOR, "floor"),
    Entry(ICEORYX2, "iceoryx2", only_spins=True),
    Entry(ICEORYX2_VIEWS, "iceoryx2", {"has_views": True}, only_spins=True),
    Entry(ICEORYX2_EVENT, "iceoryx2", {"has_events": True}),
    Entry(KICKMSG, "kickmsg", only_spins=True),
    Entry(CLOUDTOID, "cloudtoid", only_spins=True, moves_all=True),
    Entry(PIPE, "pipe", moves_all=True),
    Entry(QUEUE, "queue", moves_all=True),
    Entry(PYZMQ, "zmq", moves_all=True),
    Entry(FRESH, "fresh"),
    Entry(PLASMA, "plasma"),
)

#: Mode -> whether the producer copies all in and the consumer copies all out; else they touch a byte.
MODES = {"copy": (True, True), "touch": (False, False), "fill": (True, False), "read": (False, True)}
MODE_NAMES = {
    "copy": "copied in, copied out",
    "touch": "one byte touched by each side",
    "fill": "copied in, first and last byte read by the consumer",
    "read": "touched by the producer, copied out",
}
#: Modes that are measured blocking as well as spinning.
BOTH_WAYS = ("copy", "touch")

CAVEATS = (
    "spin: who waits polls for 200 us before it sleeps; blocking: it sleeps at once. shmpool, fresh segment, Plasma"
    " and floor send tokens over the same pipe. Pipe, Queue, pyzmq, iceoryx2, kickmsg and cloudtoid have a channel of"
    " their own; a Queue always sleeps, iceoryx2 poll and views, kickmsg and cloudtoid never do. Acknowledgements take"
    " the same pipe for all.",
    "shmpool chunked has very_large_object_threshold raised to 16 MiB; shmpool, as it is by default, is direct from"
    " 1 MiB on. There the ratios are those of shmpool chunked.",
    "shmpool compiled has the compiled part on both sides, and its broker; where it is not built, it is absent."
    " compiled queue sends its tokens through a queue of the pool's, and what is copied in as it is, up to 4 KiB.",
    "iceoryx2 poll and event reach the bytes by their bare address, iceoryx2 views by the memoryviews of its payloads.",
    "Pipe, Queue, pyzmq and cloudtoid move all bytes in every mode, so they are not measured in the two mixed ones.",
)


class Contest:
    """The pairs that could be started. `absent` says why others could not, or stopped."""

    def __init__(self, pairs: dict[str, Pair], absent: dict[str, str], options: Options) -> None:
        self._pairs = pairs
        self.absent = absent
        self._rounds = options.rounds or ROUNDS
        self._seconds = options.seconds or SECONDS

    def run(self, plan: Plan, others: Mapping[str, Contestant] | None = None) -> dict[str, Series]:
        """Interleave all who take the plan. A pair that fails is out from then on."""
        while True:
            contestants = {label: partial(pair.lap, plan) for label, pair in self._of(plan).items()}
            try:
                return interleave(
                    {**contestants, **(others or {})}, rounds=self._rounds, seconds=self._seconds, least=plan.in_flight
                )
            except PairFailed as failure:
                self._drop(failure)

    def _of(self, plan: Plan) -> dict[str, Pair]:
        return {label: pair for label, pair in self._pairs.items() if pair.entry.takes(plan)}

    def _drop(self, failure: PairFailed) -> None:
        del self._pairs[failure.label]
        self.absent[failure.label] = f"stopped: {failure}"


@contextmanager
def contest(entries: Iterable[Entry], options: Options) -> Iterator[Contest]:
    """Start the pairs of all entries, and end them."""
    with ExitStack() as stack:
        pairs, absent = {}, {}
        for entry in entries:
            with console.status(f"starting {entry.label}"):
                try:
                    pairs[entry.label] = stack.enter_context(Pair(entry))
                except Absent as reason:
                    absent[entry.label] = str(reason)
        yield Contest(pairs, absent, options)


def ours_at(nbytes: int, labels: Iterable[str]) -> str:
    """Which shmpool the peers are compared with: chunked, where objects are very large."""
    return CHUNKED if nbytes >= VERY_LARGE and CHUNKED in labels else OURS


def compiled_at(nbytes: int, labels: Iterable[str]) -> str:
    """The same of the compiled one."""
    return COMPILED_CHUNKED if nbytes >= VERY_LARGE and COMPILED_CHUNKED in labels else COMPILED


def queued_at(nbytes: int, labels: Iterable[str]) -> str:
    """The same of the compiled one with a queue."""
    return COMPILED_QUEUE_CHUNKED if nbytes >= VERY_LARGE and COMPILED_QUEUE_CHUNKED in labels else COMPILED_QUEUE
