"""Mistakes in the queue's code, each of which must be found in its scenario."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from shmpool.queues.getting import Getting
from shmpool.queues.hands import Hands
from shmpool.queues.locks import End
from shmpool.queues.putting import Putting
from shmpool.queues.ring import Ring

from . import queue_memory
from .mutants import Mutant, rewrite, together
from .queue_scenarios import QUEUE_SCENARIO
from .queue_world import QueueWorld

_SAID = "words[end.said] = end.name"
_CURRENT = "and words[end.version] == version"
_TAIL = "words[TAIL] = self._last_tail = (at + count & LOW) << 32 | (tail + 1 & LOW)"
_HEAD = "words[HEAD] = (at + count & LOW) << 32 | (head + 1 & LOW)"
_LEAVES = "finally:\n        try:\n            leave()"


@contextmanager
def lock_left_out() -> Iterator[None]:
    """A semaphore that everybody takes."""

    def acquire(self: queue_memory.Semaphore, block: bool = True, timeout: float | None = None) -> bool:
        self._is_mine_now = True
        return True

    def release(self: queue_memory.Semaphore) -> None:
        queue_memory.Gate.release(self)

    with patch.multiple(queue_memory.Semaphore, acquire=acquire, release=release):
        yield


@contextmanager
def semaphore_is_no_barrier() -> Iterator[None]:
    """A lock that does not order stores."""
    with patch.object(QueueWorld, "is_semaphore_a_barrier", False):
        yield


@contextmanager
def tail_guessed() -> Iterator[None]:
    """Before its first look a process takes TAIL for 0."""
    init = Ring.__init__

    def begin(self: Ring, *given: object) -> None:
        init(self, *given)  # type: ignore[arg-type]
        self._seen_tail = 0

    with patch.object(Ring, "__init__", begin):
        yield


QUEUE_MUTANTS: tuple[Mutant, ...] = (
    Mutant("the lock left out", QUEUE_SCENARIO["two put, one gets"], lock_left_out),
    Mutant("a semaphore that is no barrier", QUEUE_SCENARIO["one puts, one gets"], semaphore_is_no_barrier, ("TSO",)),
    Mutant("TAIL guessed", QUEUE_SCENARIO["one puts, one gets"], tail_guessed),
    Mutant(
        "TAIL before the item", QUEUE_SCENARIO["one puts, one gets"],
        rewrite(Putting, "put_fast", (
            f"{' ' * 20}self.raw[start + 8", f"{' ' * 20}{_TAIL}\n{' ' * 20}self.raw[start + 8",
        )),
    ),
    Mutant(
        "HEAD before the item is copied", QUEUE_SCENARIO["one place"],
        rewrite(Getting, "get_fast", (
            "found = self.raw[start + 8 : start + 8 + length]",
            f"{_HEAD}; found = self.raw[start + 8 : start + 8 + length]",
        ), ("words[HEAD] = head = (at", "head = (at")),
    ),
    Mutant(
        "who is inside does not say so", QUEUE_SCENARIO["a putter's death x putter"],
        together(
            rewrite(Putting, "put_fast", (_SAID, "pass")),
            rewrite(End, "_try", ("words[self.said] = self.name", "pass")),
        ),
    ),
    Mutant(
        "it says nothing before it lets go", QUEUE_SCENARIO["a putter's death x putter"],
        rewrite(Putting, "put_fast", (_LEAVES, _LEAVES.replace("leave()", "words[end.said] = 0\n            leave()"))),
    ),
    Mutant(
        "the version is not looked at again", QUEUE_SCENARIO["a death x two putters"],
        together(
            rewrite(Putting, "put_fast", (_CURRENT, "")),
            rewrite(End, "_try", ("if words[self.version] == version:", "if True:")),
        ),
        ("SC",),
    ),
    Mutant(
        "who mends does not wait for those inside", QUEUE_SCENARIO["a death x each putter"],
        rewrite(End, "_mend", ("if not self._names(alive=True):", "if True:")),
    ),
    Mutant(
        "nobody mends", QUEUE_SCENARIO["a putter's death x putter"],
        rewrite(End, "_mend", ("if not (is_sure or self._names(alive=False)):\n        return\n", "return\n")),
    ),
    Mutant(
        "who lies down is not counted", QUEUE_SCENARIO["one puts, one gets"],
        rewrite(Getting, "_get", ("rest.lie_down(words, GETTERS_SLEEP)", "rest.epoch, rest.left = 1, 1.0")),
    ),
    Mutant(
        "a putter that lies down is not counted", QUEUE_SCENARIO["a full queue"],
        rewrite(Putting, "_put", ("rest.lie_down(words, PUTTERS_SLEEP)", "rest.epoch, rest.left = 1, 1.0")),
    ),
    Mutant(
        "a putter sleeps for a HEAD that it saw after it had found no room", QUEUE_SCENARIO["a full queue"],
        rewrite(Putting, "_put", ("rest.seen = seen", "rest.seen = words[HEAD]")),
    ),
    # Leases.
    Mutant(
        "a lease that is not noted", QUEUE_SCENARIO["a lease's putter's death x putter"],
        rewrite(Putting, "_store_handle", (
            "words[ODD] = words[ODD] & 7 | Odd.INTENTS | intents + 1 << _INTENTS_SHIFT", "pass",
        )),
    ),
    Mutant(
        "leftovers stay", QUEUE_SCENARIO["a lease's putter's death x putter"],
        rewrite(Putting, "_discard_intents", (
            "if generation_of(granted) == generation and", "if False and generation_of(granted) == generation and",
        )),
    ),
    Mutant(
        "HEAD before the ticket", QUEUE_SCENARIO["a lease's getter's death alone"],
        rewrite(Getting, "get_fast", (
            "opened = self._open(start >> 3)", f"{_HEAD}; opened = self._open(start >> 3)",
        ), ("words[HEAD] = head = (at", "head = (at")),
    ),
    Mutant(
        "what is dropped keeps its ticket", QUEUE_SCENARIO["a lease dropped"],
        rewrite(Ring, "discard_items", ("self.discard(words[word + 1], words[word + 2])", "pass")),
    ),
    # What gives back.
    Mutant(
        "HEAD before the hand", QUEUE_SCENARIO["a death with hands full"],
        rewrite(Hands, "take", (
            "words[hand + OWNER] = self._me\n        words[HEAD] = position = following",
            "words[HEAD] = position = following\n        words[hand + OWNER] = self._me",
        )),
    ),
    Mutant(
        "hands of the dead stay", QUEUE_SCENARIO["a death with hands full"],
        rewrite(Hands, "take_over", ("words[hand + OWNER] = self._me\n        self._hold(hand)\n", "continue\n")),
    ),
    Mutant(
        "a hand is believed though HEAD is not stored", QUEUE_SCENARIO["a death with hands full x more"],
        rewrite(Hands, "take_over", ("if (words[hand + NUMBER] - (head >> 32) & LOW) < _HALF:", "if False:")),
    ),
)  # fmt: skip
