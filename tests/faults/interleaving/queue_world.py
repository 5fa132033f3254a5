"""The world of a queue: what a step does to its semaphores and to who sleeps, and what must hold.

- two that got one item, unless the first of them died with it in a queue that gives back; one that got what is no
  item, or the items of a putter out of their order;
- a position that goes back, or a queue with more items than it has room for;
- at rest: somebody alive who waits, though there is an item for him, or room; an item that is lost, and was not in
  the hands of who died; a ticket that nobody knows of; in the modes where *bells_suffice* also without a sleep that
  ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from shmpool.protocol.ledger import state_of
from shmpool.protocol.queues import (
    HAND_WORDS,
    HEAD,
    INTENTS,
    KIND_SHIFT,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOW,
    NUMBER,
    ODD,
    OWNER,
    TAIL,
    WORD,
    Kind,
    Odd,
    first_hand,
    hand_words,
)
from shmpool.protocol.states import State

from . import queue_clients
from .machines import Context, Machine, Node
from .queue_clients import LARGE, QueueClient
from .queue_memory import MOST_BYTES, QueueJudge, QueueLayout, QueueStart
from .scenarios import Scenario
from .states import Draft, State_
from .world import World

QueueRole = Callable[[QueueClient], None]


@dataclass(frozen=True)
class QueueScenario(Scenario):
    """What is put and got. *most_lost* of the items may be lost by each death. Without *has_broker* the broker sees no
    death: what does not need it must go on without it."""

    granules: int = 4
    capacity: int = 2
    flags: int = 0
    hands: int = 0
    most_lost: int = 0
    has_broker: bool = False
    #: What waits for who has stopped for ever may wait for ever; what is dropped is not lost.
    may_be_stuck: bool = False
    drops: bool = False

    def start(self) -> QueueStart:
        return QueueStart(
            self.seats,
            granules=self.granules,
            capacity=self.capacity,
            flags=self.flags,
            hands=self.hands,
            gives_back=self.gives_back,
        )

    def _body(self, name: str, role: Any) -> Callable[[Context], None]:
        return lambda context: QueueClient(context, context.machine.start).run(role)


class QueueMachine(Machine):
    """One party of it. What it had put and got before its end stays known."""

    def still(self, node: Node, what: str) -> Node:
        marks = node.marks if len(node.marks) == 2 else ((), ())
        key = (what, marks, node.seat)
        found = self._cuts.get(key)
        if found is None:
            context = Context(self)
            context.won = frozenset() if self.start.settings.give_back else frozenset(marks[1])
            context.seat, context.marks = node.seat, marks
            found = self._cuts[key] = Node(self, None, None, (what,), context)
        return found


class QueueWorld(World):
    """All states of one scenario with a queue."""

    machine, judge, patched = QueueMachine, QueueJudge, staticmethod(queue_clients.patched)
    scenario: QueueScenario
    layout: QueueLayout
    #: In a mutant: a semaphore that orders no stores.
    is_semaphore_a_barrier = True

    @property
    def timers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*World.timers, *(f"timer{party}" for party in range(len(self.machines))))

    # --- steps ---------------------------------------------------------------------------------------

    def _events(self, draft: Draft, *flags: bool) -> list[tuple[str, Any]]:
        return super()._events(draft, *flags) if self.scenario.has_broker else []

    def _choices(self, draft: Draft, party: int, request: tuple[Any, ...]) -> list[tuple[str, Any]]:
        what = request[0]
        if what in ("asleep", "pause"):
            return [("time", f"timer{party}")]
        if what == "wake":
            asleep = [
                other
                for other, node in enumerate(draft.nodes)
                if node.request == ("asleep", request[1]) and draft.alive >> other & 1 and not draft.paused >> other & 1
            ]
            return [("step", woken) for woken in combinations(asleep, min(request[2], len(asleep)))]
        return super()._choices(draft, party, request)

    def _perform(self, draft: Draft, party: int, choice: Any) -> None:
        what, *args = draft.nodes[party].request
        if what not in ("acquire", "release"):
            return super()._perform(draft, party, choice)
        number = args[0]
        if what == "acquire" and not self._read(draft, party, number):  # a load, which orders nothing
            return self._follow(draft, party, False)
        if self.is_semaphore_a_barrier:
            for stored, value in draft.buffers[party]:
                self._commit(draft, party, stored, value)
            draft.set_buffer(party, ())
        value = draft.memory[number]
        if what == "acquire" and not value:
            return self._follow(draft, party, False)
        self._commit(draft, party, number, value + (1 if what == "release" else -1))
        return self._follow(draft, party, True if what == "acquire" else None)

    def _on_pause(self, draft: Draft, party: int, choice: Any) -> None:
        pass

    def _on_sleep(self, draft: Draft, party: int, choice: Any, number: int, seen: int) -> bool:
        """The kernel compares the word itself, and whoever changes it wakes later."""
        return draft.memory[number] & LOW == seen

    def _on_asleep(self, draft: Draft, party: int, choice: Any, number: int) -> None:
        """Its sleep is over by itself."""

    def _on_wake(self, draft: Draft, party: int, choice: Any, number: int, sleepers: int) -> None:
        for woken in choice:
            draft.nodes[woken] = self.machines[woken].advance(draft.nodes[woken], "woken")

    def _on_alive(self, draft: Draft, party: int, choice: Any, seat: int) -> bool:
        """Each process has a byte locked until it ends, whatever its node says of its seat."""
        return bool(draft.alive >> seat - 1 & 1)

    # --- what must hold ------------------------------------------------------------------------------------

    def complaint(self, state: State_) -> str | None:
        draft = Draft(self, state)
        memory, layout = draft.memory, self.layout
        deaths = self.scenario.faults - draft.budget[0]
        is_shut = memory[layout.queue[ODD]] & Odd.SHUT
        inside = [self._item(*words) for words in layout.inside(memory)]
        has_room = len(inside) < layout.capacity
        for party, node in enumerate(draft.nodes[: self.broker_at]):
            if not draft.alive >> party & 1 or draft.paused >> party & 1:
                continue
            what = node.request
            waits = what[0] == "asleep" and not is_shut and not self._have_dead_hands(draft)
            if not self.scenario.may_be_stuck and not (
                (waits and what[1] == layout.queue[TAIL] and not inside)
                or (waits and what[1] == layout.queue[HEAD] and (not has_room or self._are_hands_full(draft)))
            ):
                return f"{node.machine.name} is stuck at {self.text(party, what)}, with {inside} in the queue"
        put = {item for node in draft.nodes for item in (node.marks[0] if len(node.marks) == 2 else ())}
        got = {item for node in draft.nodes for item in (node.marks[1] if len(node.marks) == 2 else ())}
        in_hands = set(self._in_hands(draft))
        lost = put - got - set(inside) - in_hands
        may_lose = self.scenario.drops or memory[layout.queue[ODD]] & Odd.SHUT_AT_ONCE
        if not may_lose and len(lost) > deaths * self.scenario.most_lost:
            return f"{sorted(map(str, lost))} are lost, {deaths} died"
        return self._forgotten(draft, inside, in_hands)

    def complaint_of_bells(self, state: State_) -> str | None:
        """Who sleeps with a lock to wait for is no complaint: time alone wakes him."""
        nodes = Draft(self, state).nodes
        return None if any(node.request[0] == "pause" for node in nodes) else self.complaint(state)

    def _item(self, word: int, content: int, tail: int) -> Any:
        kind, length = word >> KIND_SHIFT, word >> LENGTH_SHIFT & LENGTH_MASK
        return content.to_bytes(8, "little")[:length] if kind == Kind.BYTES else LARGE

    def _in_hands(self, draft: Draft) -> list[Any]:
        """What those of a queue that gives back have, or have to give."""
        memory, words, scenario = draft.memory, self.layout.queue, self.scenario
        found = []
        for hand in range(scenario.hands):
            at = first_hand(scenario.seats, scenario.flags) + hand * hand_words(MOST_BYTES)
            is_taken = (memory[words[at + NUMBER]] - (memory[words[HEAD]] >> 32) & LOW) >= 1 << 31
            if memory[words[at + OWNER]] and is_taken:
                found.append(self._item(memory[words[at + WORD]], memory[words[at + HAND_WORDS]], 0))
        return found

    def _have_dead_hands(self, draft: Draft) -> bool:
        """Whether a dead consumer has something in its hands, and the broker has seen its death."""
        memory, words, scenario = draft.memory, self.layout.queue, self.scenario
        for hand in range(scenario.hands):
            seat = (
                memory[words[first_hand(scenario.seats, scenario.flags) + hand * hand_words(MOST_BYTES) + OWNER]] >> 48
            )
            if seat and not draft.alive >> seat - 1 & 1 and not memory[self.layout.seat_states[seat]]:
                return True
        return False

    def _are_hands_full(self, draft: Draft) -> bool:
        return 0 < self.scenario.hands == len(self._in_hands(draft))

    def _forgotten(self, draft: Draft, inside: list[Any], in_hands: set[Any]) -> str | None:
        """A ticket that may be taken, and lies nowhere."""
        memory, layout = draft.memory, self.layout
        cell, grant = memory[layout.cells[0]], memory[layout.grant]
        if not state_of(cell) == State.PUBLISHED == state_of(grant) or LARGE in inside or LARGE in in_hands:
            return None
        granule = memory[layout.queue[INTENTS + 2]]
        is_noted = memory[layout.queue[ODD]] & Odd.INTENTS and granule == memory[layout.queue[TAIL]] >> 32
        return None if is_noted else "nobody knows of the ticket any more"
