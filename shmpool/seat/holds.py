"""Holds: the shared publications that this process has open, one record for each, whoever opens it.

The first open asks the broker, further ones find the hold here. Every view hangs on the hold's window,
so the window's reference count tells when the last one is gone; then the helper lets go, a little later
(a loop that opens and releases asks once), or at once when somebody waits for memory. A **pin** keeps a
hold without a view: its maker's, and that of what was found and not yet opened. What a child may have
inherited is held as long as it reads (`guards`).
"""

from __future__ import annotations

import threading
import time
from _weakref import ref
from collections import deque
from operator import attrgetter
from sys import getrefcount

from ..errors import BrokerUnavailable, LeaseTimeout, NameTaken, NotFound, ShmpoolError
from ..link.requests import Question, Request
from ..protocol.codes import Code
from ..protocol.ledger import CHECKSUM, EXTENT, NBYTES_BITS, ROW_WORDS, generation_of, is_queue
from ..protocol.messages import MAX_ROWS_PER_MESSAGE, Held, Holds, LetGo, Refusal, Share, Turn
from ..system.here import HERE, OURS
from . import records
from .guards import note_forks
from .records import Record
from .supply import Supply
from .windows import AT_REST, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Seconds that a hold outlives its last view.
LINGER: Final = 0.25
#: The helper's pause between looks while anything is held without a pin. It grows with the time that views live
#: on: who reads a table for hours would have each of its processes wake ten times a second.
PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
GROWTH: Final = 1 / 8
_number: Final = attrgetter("number")


class Hold:
    """One shared publication that is held here. *number* is by which the broker knows that, *fork* the
    last fork that had ended before; *written* the window through which its maker may still see it;
    *checksum* what its bytes have to add up to, until they did here, None where nothing is summed."""

    __slots__ = (
        "checksum", "fork", "granted", "idle_since", "is_ending", "name", "nbytes", "number", "pins", "record",
        "written",
    )  # fmt: skip

    def __init__(
        self, record: Record, held: Held, fork: int, written: Window | None, checksum: int | None = None
    ) -> None:
        self.record = record
        self.checksum = checksum
        self.number = held.request
        self.granted = held.word
        self.nbytes = held.nbytes
        self.name = held.name
        self.fork = fork
        self.written = written
        #: For whom it is pinned, by his id. Whom an exception kept from having the hold is no more, and pins nothing.
        self.pins: dict[int, ref[object]] = {}
        self.idle_since: float | None = None
        #: Nobody may look through it any more, unless it is found to be in use after all.
        self.is_ending = False

    @property
    def is_looked_through(self) -> bool:
        """Whether a view of it lives."""
        return self.record.is_looked_through or (self.written is not None and getrefcount(self.written) != AT_REST)

    @property
    def is_in_use(self) -> bool:
        """Whether a view or a pin keeps it."""
        return any(holder() is not None for holder in list(self.pins.values())) or self.is_looked_through

    def unpin(self, holder: object) -> None:
        """One pin less. From the last one on the helper has to look whether a view is left. For finalizers, too."""
        self.pins.pop(id(holder), None)
        if not self.pins and HERE[OURS]:
            self.record.session.wake_helper()


class HoldTable:
    """Those of one session. Thread-safe."""

    def __init__(self, session: Supply) -> None:
        self._session = session
        self._table: dict[int, Hold] = {}
        #: Of the table, and of what hangs on a window of it. Reentrant: a finalizer of the user's may open
        #: something meanwhile.
        self.lock = threading.RLock()
        #: A connection was lost and not everything was told again: see `messages`.
        self._told: list[int] = []
        #: Those that were let go of and the broker is not told of yet: what an exception keeps from telling of them is
        #: done at the next look.
        self._untold: set[int] = set()
        #: The last that were let go of one by one: the word may have been lost with its connection, or there was none.
        self._parted: deque[int] = deque(maxlen=MAX_ROWS_PER_MESSAGE)
        #: By number: what is being shared, and its grant word, from before the store that publishes it until it is
        #: held, refused or discarded.
        self._sharing: dict[int, tuple[Share, int]] = {}
        #: What was published for sharing and has nobody: the broker has to know of it, else it waits for our word.
        self._discarded: dict[int, tuple[Share, int]] = {}
        #: When a hold last came, was found idle or ended, in monotonic seconds.
        self._changed_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._table)

    # --- asking ---------------------------------------------------------------------------------------

    def ask(
        self, message: Question, timeout: float | None, *, what: str, asked: list[Request] | None = None
    ) -> Request:
        """Send a question to the broker and wait; the request has its answer or its refusal. Raises
        LeaseTimeout and BrokerUnavailable when there is neither in time. *asked* is told of the request first: an
        exception that comes behind this leaves it to `let_go_of`."""
        session = self._session
        session.helper.stand_by()
        request = Request(message)
        if asked is not None:
            asked.append(request)
        session.link.ask(request, timeout)
        if request.answer is None and request.refusal is None:
            if session.link.is_discarding:
                raise session.discarded()
            waited = time.monotonic() - request.began
            if session.link.connection is None:
                raise BrokerUnavailable(f"{what}: the broker at {session.address} is away, waited {waited:.3g} s")
            raise LeaseTimeout(f"{what}: the broker did not answer within {waited:.3g} s")
        return request

    def keep(self, held: Held, written: Window | None = None, *, holder: object = None) -> Hold:
        """Map what the broker holds for us, pinned for a *holder*. If another thread was faster, its hold counts.
        Nothing is held when it raises. What is not pinned has to be looked through soon."""
        session = self._session
        try:
            with self.lock:
                hold = self._find(held.row, held.word)
                if hold is None:
                    note_forks()
                    made = Hold(self._map(held), held, session.forks, written, self._checksum_of(held.row))
                    hold = self._find(held.row, held.word)  # a finalizer may have been faster
                    if hold is None:
                        self._table[held.row] = hold = made
                hold.is_ending = False
                self._sharing.pop(held.request, None)
                if hold.number != held.request:
                    self.let_go(held.request)
                self._changed_at = time.monotonic()
                if holder is not None:  # under the lock: who gives back what is idle does not come in between
                    hold.pins[id(holder)] = ref(holder)
        except BaseException:
            self.let_go(held.request)
            raise
        if holder is None:  # else at the end of the last pin: a helper that is woken here runs before the caller
            session.wake_helper()
        return hold

    def _find(self, row: int, granted: int) -> Hold | None:
        hold = self._table.get(row)
        return hold if hold is not None and hold.granted == granted else None

    def _map(self, held: Held) -> Record:
        record = records.make_record(self._session, held.row << 4 + NBYTES_BITS | held.nbytes)
        records.map_record(record, held.word, held.nbytes)
        return record

    def _checksum_of(self, row: int) -> int | None:
        session = self._session
        is_summed = session.has_checksums and not is_queue(session.words[row * ROW_WORDS + EXTENT])
        return session.words[row * ROW_WORDS + CHECKSUM] if is_summed else None

    def look_through(self, row: int, granted: int) -> tuple[Hold, memoryview] | None:
        """A view of a publication that is held, None of one that is not: in one step, which the helper
        does not let go of in between."""
        with self.lock:
            hold = self._find(row, granted)
            if hold is None or hold.is_ending:
                return None
            if self._session.is_over:
                raise self._session.discarded()
            if hold.idle_since is not None:
                hold.idle_since, self._changed_at = None, time.monotonic()
            assert hold.record.window is not None
            return hold, memoryview(hold.record.window)[: hold.nbytes]

    # --- letting go -------------------------------------------------------------------------------------

    @property
    def pause(self) -> float | None:
        """For the helper: when it has to look again."""
        if self._untold:
            return PAUSE
        watched = [hold for hold in list(self._table.values()) if not hold.pins]
        if not watched:
            return None
        if any(hold.idle_since is not None for hold in watched):
            return PAUSE
        return min(LONGEST_PAUSE, max(PAUSE, GROWTH * (time.monotonic() - self._changed_at)))

    def look(self, *, at_once: bool = False) -> bool:
        """Let go of what nobody looks through any more; False when there was nothing."""
        session, now, has_ended = self._session, time.monotonic(), False
        if session.is_over or not (self._table or self._untold):
            return False
        note_forks()
        with self.lock:
            for row, hold in list(self._table.items()):
                if hold.is_in_use:
                    hold.idle_since = None
                    continue
                if hold.idle_since is None:
                    hold.idle_since = self._changed_at = now
                is_due = at_once or now >= hold.idle_since + LINGER
                guards = session.guards
                if not is_due or guards.between(hold.fork, guards.last) or guards.awaits_copy(row):
                    continue
                # A finalizer may come in between, and open it: from here on it has to ask (`keep`), and what it
                # has by then is found.
                hold.is_ending = True
                is_in_use = hold.is_in_use
                if is_in_use or not hold.is_ending:
                    hold.is_ending, hold.idle_since = False, None
                    continue
                # In one step: an exception comes before it, or the broker is told all the same.
                self._untold.update(map(_number, map(self._table.pop, (row,))))
                hold.record.window = hold.written = None  # before the word: memory stays with a map
                has_ended = True
        self._tell_parted()
        return has_ended

    def let_go(self, number: int) -> None:
        """A turn that is not taken, or a hold that is not kept."""
        self._parted.append(number)
        self._untold.add(number)
        self._tell_parted()

    def _tell_parted(self) -> None:
        """The broker, of what was let go of. Twice is fine."""
        try:
            untold = self._untold
            while True:
                if not untold:
                    break
                with self.lock:  # what another thread has just taken from the table it has still to unmap
                    numbers = list(untold)[:MAX_ROWS_PER_MESSAGE]
                if numbers:  # else the helper was faster
                    self._session.link.send(LetGo(numbers))
                untold.difference_update(numbers)
        except BaseException:
            self._session.wake_helper()
            raise

    def let_go_of(self, asked: list[Request]) -> None:
        """What was asked, and is not made or kept: an exception came behind the answer."""
        for request in asked:
            kept = {hold.number for hold in list(self._table.values())}
            if isinstance(request.answer, Turn) or (isinstance(request.answer, Held) and request.number not in kept):
                self.let_go(request.number)

    def begin_sharing(self, message: Share, granted: int) -> None:
        """From here on it may be published. Whoever began it has it held by `keep`, or discards it."""
        self._sharing[message.request] = message, granted

    def discard_sharing(self, message: Share) -> None:
        """Nobody will have what was, or was to be, shared: an exception came, or there was no answer, or a refusal."""
        known = self._sharing.get(message.request)
        if known is not None:
            self._discarded[message.request] = known
            self._sharing.pop(message.request, None)
            self._tell_discarded()

    def _tell_discarded(self) -> None:
        """Until its maker has told of it nothing else ends it: the broker takes him for one who has yet to. That he
        has told before does no harm."""
        session = self._session
        for message, granted in list(self._discarded.values()):
            if session.is_over or session.words[message.row * ROW_WORDS] != granted:
                self._discarded.pop(message.request, None)
            else:
                session.link.send(message)
                self.let_go(message.request)

    @property
    def in_use(self) -> bool:
        """Whether a view of anything lives. A pin is no use once its pool is closed."""
        return any(hold.is_looked_through for hold in list(self._table.values()))

    # --- another connection, another process ------------------------------------------------------------

    def messages(self) -> list[Holds]:
        """All that is held, for a broker that may not know: to be sent before anything else."""
        with self.lock:
            holds = [[hold.number, row, generation_of(hold.granted)] for row, hold in self._table.items()]
        # The broker may have answered, and lost nobody's but our word: it is asked once more, and must find it there.
        holds += [
            [number, message.row, generation_of(granted)]
            for number, (message, granted) in self._sharing.copy().items()
            if self._session.words[message.row * ROW_WORDS] == granted
        ]
        self._told = [hold[0] for hold in holds]
        parts = [holds[at : at + MAX_ROWS_PER_MESSAGE] for at in range(0, len(holds), MAX_ROWS_PER_MESSAGE)] or [[]]
        return [Holds(part, part is parts[-1]) for part in parts]

    def after_telling(self) -> None:
        """What was told, and let go of before there was a connection to say so; and turns, which nothing else tells
        of. To let go of something twice does nothing."""
        self._tell_discarded()
        if self._parted:
            self._session.link.send(LetGo(list(self._parted)))
        numbers = set(self._sharing.copy())  # first: what is held meanwhile is in the table by then
        numbers |= {hold.number for hold in list(self._table.values())}
        for number in self._told:
            if number not in numbers:
                self.let_go(number)

    def abandon(self) -> None:
        """In a forked child: the parent's views are all that is left of it."""
        self.lock = type(self.lock)()
        for hold in self._table.values():
            hold.record.window = hold.written = None
        self._table, self._sharing, self._untold = {}, {}, set()
        self._discarded.clear()


def refused(refusal: Refusal) -> ShmpoolError:
    """The error for what there is not."""
    if refusal.code == Code.NAME_TAKEN:
        return NameTaken(refusal.text)
    if refusal.code == Code.NOT_FOUND:
        return NotFound(refusal.text)
    return ShmpoolError(refusal.text)
