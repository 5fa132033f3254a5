"""A queue's memory under the explorer: which of its words are modelled, how parties see them, and what stands for
semaphores, futexes and time.

The memory follows the words of the pool (`memory`). Where a queue lies in its own segment does not matter: an address
is the number of a byte of it. An item has up to 8 bytes, so each store of its contents is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmpool.protocol.header import SEATS_ENDED
from shmpool.protocol.queues import (
    CAPACITY,
    CLAIM,
    DROPPED,
    FLAGS,
    GETTERS_SLEEP,
    GRANULE_BYTES,
    GRANULES,
    HAND_WORDS,
    HANDS,
    HEAD,
    INTENTS,
    LOCKS,
    LOW,
    MAGIC,
    MAXSIZE,
    MOST_INLINE,
    ODD,
    PUTTERS_SLEEP,
    RINGS,
    SEATS,
    SEMAPHORE_WORDS,
    SEMAPHORES,
    TAIL,
    VERSIONS,
    first_granule,
    first_hand,
    first_said,
    hand_words,
    moved,
)

from .machines import Context
from .memory import Column, Judge, Layout, Memory
from .start import Start

#: Bytes of an item at the most, and of a handle in its cell.
MOST_BYTES = 8
#: Nothing is put before the first step, and the numbers are about to turn over.
BEGIN = LOW - 1
POSITION = BEGIN << 32 | BEGIN


class QueueLayout(Layout):
    """The words of a pool, and behind them those of one queue."""

    def __init__(self, tickets: int, seats: int, granules: int, capacity: int, flags: int, hands: int) -> None:
        super().__init__(tickets, seats)
        self.granules, self.capacity = granules, capacity
        self.first = first_granule(seats, flags, hands, MOST_BYTES)
        self.queue: dict[int, int] = {}
        self.constants = [0] * (self.first // 8 + granules * GRANULE_BYTES // 8)
        for word, value in (
            (0, MAGIC), (GRANULES, granules), (CAPACITY, capacity), (MAXSIZE, capacity), (FLAGS, flags),
            (HANDS, hands), (SEATS, seats), (MOST_INLINE, MOST_BYTES),
        ):  # fmt: skip
            self.constants[word] = value
        self._add_words(seats, flags, hands)
        #: Who has hands looks there whether anybody may have died.
        self.header[SEATS_ENDED] = len(self.names)
        self.names.append("seats ended")

    def _add_words(self, seats: int, flags: int, hands: int) -> None:
        for word, name in (
            (TAIL, "TAIL"), (HEAD, "HEAD"), (ODD, "ODD"), (GETTERS_SLEEP, "getters asleep"),
            (PUTTERS_SLEEP, "putters asleep"), (CLAIM, "CLAIM"), (RINGS, "RINGS"), (DROPPED, "DROPPED"),
        ):  # fmt: skip
            self._add(word, name)
        for number, name in enumerate(("row", "generation", "granule")):
            self._add(INTENTS + number, f"intent's {name}")
        for end, name in enumerate("TH"):
            self._add(SEMAPHORES + end, f"{name}'s version")
            for version in range(VERSIONS):
                self._add(LOCKS + (end * VERSIONS + version) * SEMAPHORE_WORDS, f"{name}'s semaphore {version}")
            for seat in range(1, seats + 1):
                self._add(first_said(seats, end) + seat, f"seat {seat} says it is in {name}")
        for hand in range(hands):
            at = first_hand(seats, flags) + hand * hand_words(MOST_BYTES)
            for number, name in enumerate(("owner", "number", "word")):
                self._add(at + number, f"hand {hand}'s {name}")
            self._add(at + HAND_WORDS, f"hand {hand}'s bytes")
        for place in range(self.granules):
            for number, name in enumerate(("item", "bytes", "tail")):
                self._add(self.first // 8 + 4 * place + number, f"place {place}'s {name}")

    def _add(self, word: int, name: str) -> None:
        self.queue[word] = len(self.names)
        self.names.append(name)

    def snapshot(self, ledger: Sequence[int], header: Sequence[int]) -> list[int]:
        memory = super().snapshot(ledger, header)
        memory[self.queue[TAIL]] = memory[self.queue[HEAD]] = POSITION
        for end in range(2):
            memory[self.queue[LOCKS + end * VERSIONS * SEMAPHORE_WORDS]] = 1
        return memory

    def inside(self, memory: Memory) -> list[tuple[int, int, int]]:
        """What lies between HEAD and TAIL: its first word, and the two words behind that."""
        head, tail = memory[self.queue[HEAD]], memory[self.queue[TAIL]]
        found = []
        while head != tail and len(found) <= self.capacity:
            at = self.first // 8 + 4 * (head >> 32 & self.granules - 1)
            found.append((memory[self.queue[at]], memory[self.queue[at + 1]], memory[self.queue[at + 2]]))
            head = moved(head, 1, 1)
        return found


class QueueStart(Start):
    """A pool and an empty queue in it."""

    def __init__(self, seats: int, *, granules: int, capacity: int, flags: int, hands: int, **given: Any) -> None:
        super().__init__(seats, seats, 1, **given)
        was, self.layout = self.layout, QueueLayout(1, seats, granules, capacity, flags, hands)
        self.queue: QueueLayout = self.layout
        self.blank = self._behind(was, self.blank)
        self.memory = self._behind(was, self.memory)

    def _behind(self, was: Layout, memory: list[int]) -> list[int]:
        return [*memory, *self.queue.snapshot([0] * len(self.ledger), [0] * len(self.header))[len(was.names) :]]


class QueueJudge(Judge):
    """TAIL goes on and never past what there is room for; HEAD goes on and never past TAIL."""

    def __init__(self, layout: QueueLayout) -> None:
        super().__init__(layout)
        self._queue = layout
        for number in layout.queue.values():
            self._rules[number] = self._on_any
        self._rules[layout.queue[TAIL]] = self._on_position
        self._rules[layout.queue[HEAD]] = self._on_position

    def _on_any(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        return None

    def _on_position(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        queue = self._queue
        if (value - memory[number] & LOW) > queue.capacity:
            return "it goes back"
        head, tail = queue.queue[HEAD], queue.queue[TAIL]
        after = {head: memory[head], tail: memory[tail], number: value}
        if (after[tail] - after[head] & LOW) > queue.capacity:
            return "HEAD and TAIL are too far from each other"
        return None


# --- as a party sees it ------------------------------------------------------------------------------------


class QueueWords:
    """Its memory, by words; each access of a modelled one is a step of its own."""

    def __init__(self, context: Context, layout: QueueLayout) -> None:
        self._context, self._layout = context, layout

    def __getitem__(self, at: Any) -> Any:
        if type(at) is slice:
            return Column(self[one] for one in range(*at.indices(len(self._layout.constants))))
        number = self._layout.queue.get(at)
        return self._layout.constants[at] if number is None else self._context.read(number)

    def __setitem__(self, at: Any, value: Any) -> None:
        number = self._layout.queue.get(at)
        if number is not None:
            self._context.store(number, value)


class Raw:
    """Its memory, by bytes: the contents of items, of which each lies in one word."""

    def __init__(self, words: QueueWords, nbytes: int) -> None:
        self.words = words
        self._nbytes = nbytes

    def __len__(self) -> int:
        return self._nbytes

    def __getitem__(self, at: slice) -> bytes:
        return int(self.words[at.start >> 3]).to_bytes(8, "little")[: at.stop - at.start]

    def __setitem__(self, at: slice, value: bytes) -> None:
        self.words[at.start >> 3] = int.from_bytes(value, "little")

    def cast(self, kind: str) -> QueueWords:
        return self.words


class Cells:
    """Stands for the `struct` that stores a run of small items, or loads one."""

    def __init__(self, count: int, length: int = 0) -> None:
        self._count, self._length = count, length

    def pack_into(self, raw: Raw, start: int, *cells: Any) -> None:
        for number in range(self._count):
            at = start + number * GRANULE_BYTES
            raw.words[at >> 3] = cells[2 * number]
            raw[at + 8 : at + 16] = cells[2 * number + 1]

    def unpack_from(self, raw: Raw, start: int) -> tuple[bytes, ...]:
        starts = (start + number * GRANULE_BYTES + 8 for number in range(self._count))
        return tuple(raw[at : at + self._length] for at in starts)


# --- the kernel's part -------------------------------------------------------------------------------------


def _context() -> Context:
    assert Context.current is not None
    return Context.current


class Gate:
    """The lock between the threads of a process, which has one here."""

    def __init__(self) -> None:
        self._is_mine_now = False

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        assert not self._is_mine_now
        self._is_mine_now = True
        return True

    def release(self) -> None:
        if not self._is_mine_now:
            raise AssertionError
        self._is_mine_now = False

    def _is_mine(self) -> bool:
        return self._is_mine_now


class Semaphore(Gate):
    """A semaphore of the queue's memory, as `system.semaphores.lock_over` gives it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        assert not block, "nobody waits in a semaphore"
        self._is_mine_now = bool(_context().ask("acquire", self._number))
        return self._is_mine_now

    def release(self) -> None:
        super().release()
        _context().ask("release", self._number)


class Semaphores:
    """Stands for `system.semaphores`. -1 is the address of a gate."""

    WORDS = SEMAPHORE_WORDS

    @staticmethod
    def make(address: int, value: int) -> None:
        if address >= 0:
            layout: Any = _context().machine.start.layout
            _context().store(layout.queue[address >> 3], value)

    @staticmethod
    def lock_over(address: int) -> Gate:
        layout: Any = _context().machine.start.layout
        return Gate() if address < 0 else Semaphore(layout.queue[address >> 3])


class Futex:
    """Stands for `system.futex`."""

    @staticmethod
    def wake(address: int, sleepers: int = 1) -> None:
        layout: Any = _context().machine.start.layout
        _context().ask("wake", layout.queue[address >> 3], sleepers)
