"""Queues that give back, as an explicit-state model: a getter writes an item down in a hand before it stores HEAD, and
is the hand's owner until the item is finished; what a dead one had in its hands is taken over by who comes next. Who
joins looks at the queue's size first and at the hands then.

The getters' lock is one that no dead process keeps (`lock_model`). A batch of items is committed by one store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from walking import Violation, walk

#: Owners of a hand besides processes.
NOBODY = -1


class Hand(NamedTuple):
    owner: int = NOBODY
    item: int = -1


class Getter(NamedTuple):
    place: str = "idle"
    hand: int = -1
    #: What it has got and works at.
    item: int = -1


class State(NamedTuple):
    getters: tuple[Getter, ...]
    hands: tuple[Hand, ...]
    tail: int = 0
    head: int = 0
    claim: tuple[int, int] = (-1, -1)
    lock: int = -1
    finished: tuple[int, ...] = ()
    joins: str = "idle"


@dataclass
class Model:
    """*batches* are how many items are put at once, one after the other, by one who does not die."""

    batches: tuple[int, ...]
    getters: int = 2
    hands: int = 2
    deaths: int = 1
    mutant: str = ""

    def explore(self) -> int:
        """Walk all; the number of states. Raises Violation."""
        start = State((Getter(),) * self.getters, (Hand(),) * self.hands)
        return walk(start, lambda one: list(self.steps(one)), lambda one: list(self.die(one)), self.check, self.is_over)

    def is_over(self, state: State) -> bool:
        items = set(range(sum(self.batches)))
        return items <= set(state.finished) or all(one.place == "dead" for one in state.getters)

    def check(self, state: State) -> None:
        done_by_dead = [one.item for one in state.getters if one.place == "dead"]
        for item in state.finished:
            if state.finished.count(item) > 1 + done_by_dead.count(item):
                raise Violation(f"{item} came twice, and nobody had died who had done it and not said so: {state}")
        known = {*range(state.head, state.tail), *state.finished}
        known |= {one.item for one in state.hands if one.owner != NOBODY}
        if lost := set(range(state.tail)) - known:
            raise Violation(f"{lost} are lost: {state}")
        if state.joins == "joined" and len(set(state.finished)) < state.tail:
            raise Violation(f"who joins is told that all is finished: {state}")

    def die(self, state: State) -> Iterator[State]:
        if sum(one.place == "dead" for one in state.getters) < self.deaths:
            for number, one in enumerate(state.getters):
                if one.place not in ("dead", "idle"):
                    done = one.item if one.place == "finished" else -1
                    lock = -1 if state.lock == number else state.lock
                    yield self.to(state, number, Getter("dead", item=done))._replace(lock=lock)

    def to(self, state: State, number: int, one: Getter) -> State:
        return state._replace(getters=(*state.getters[:number], one, *state.getters[number + 1 :]))

    def with_hand(self, state: State, hand: int, value: Hand) -> State:
        return state._replace(hands=(*state.hands[:hand], value, *state.hands[hand + 1 :]))

    def steps(self, state: State) -> Iterator[State]:
        ends = [sum(self.batches[: number + 1]) for number in range(len(self.batches))]
        if state.tail != ends[-1] and state.joins == "idle":
            yield state._replace(tail=next(end for end in ends if end > state.tail))
        elif state.joins == "idle":
            looks = (
                state.head == state.tail if self.mutant != "who joins looks at the hands first" else self.free(state)
            )
            yield state._replace(joins="looked" if looks else "idle")
        elif state.joins == "looked":
            looks = (
                self.free(state) if self.mutant != "who joins looks at the hands first" else state.head == state.tail
            )
            yield state._replace(joins="joined" if looks else "idle")
        for number, one in enumerate(state.getters):
            yield from self.get(state, number, one)

    def free(self, state: State) -> bool:
        return all(hand.owner == NOBODY for hand in state.hands)

    def get(self, state: State, number: int, one: Getter) -> Iterator[State]:
        if one.place == "idle" and state.lock < 0 and state.head + len(state.finished) < 2 * sum(self.batches) + 2:
            yield self.to(state, number, Getter("locked"))._replace(lock=number)
        elif one.place == "locked":
            yield from self.take(state, number)
        elif one.place == "claimed":
            filled = state.hands[one.hand]._replace(item=state.head)
            yield self.to(self.with_hand(state, one.hand, filled), number, one._replace(place="filled"))
        elif one.place == "filled":
            owned = state.hands[one.hand]._replace(owner=number)
            yield self.to(self.with_hand(state, one.hand, owned), number, one._replace(place="owned"))
        elif one.place == "owned":
            last = self.mutant == "HEAD before the hand"
            after = "committed" if not last else "late"
            yield self.to(state._replace(head=state.head + 1), number, one._replace(place=after))
        elif one.place == "late":
            late = Hand(number, state.head - 1)
            yield self.to(self.with_hand(state, one.hand, late), number, one._replace(place="committed"))
        elif one.place == "committed":
            item = state.hands[one.hand].item
            yield self.to(state, number, Getter("works", one.hand, item))._replace(lock=-1)
        elif one.place == "works":
            done = state._replace(finished=(*state.finished, one.item))
            yield self.to(done, number, one._replace(place="finished"))
        elif one.place == "finished":
            yield self.to(self.with_hand(state, one.hand, Hand()), number, Getter())

    def take(self, state: State, number: int) -> Iterator[State]:
        for at, hand in enumerate(state.hands):
            if hand.owner != NOBODY and state.getters[hand.owner].place == "dead":
                if hand.item >= state.head and self.mutant != "a hand is believed though HEAD is not stored":
                    yield self.with_hand(state, at, Hand())
                elif self.mutant != "hands of the dead stay":
                    taken = self.with_hand(state, at, hand._replace(owner=number))
                    yield self.to(taken, number, Getter("committed", at))
                else:
                    break
                return
        free = next((at for at, hand in enumerate(state.hands) if hand.owner == NOBODY), None)
        if state.head == state.tail or free is None:
            yield self.to(state, number, Getter())._replace(lock=-1)
        elif self.mutant == "HEAD before the hand":
            yield self.to(state, number, Getter("owned", free))
        else:
            claimed = state._replace(claim=(state.head, free))
            yield self.to(claimed, number, Getter("claimed", free))
