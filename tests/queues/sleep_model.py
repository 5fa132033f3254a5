"""Sleepers and bells as an explicit-state model: getters that find nothing lie down under their lock, let go, and
sleep while TAIL is what they saw; putters look for them once they have let go of theirs. No sleep ends by itself
here, so a wake-up that is lost is a getter that sleeps for ever beside an item; in the queue it is a delay.

What is stored goes through a store buffer, which a read-modify-write (every lock and unlock) or a call of the kernel
drains. A get that goes on behind another's item passes the bell on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from walking import Violation, walk


class Process(NamedTuple):
    """*saw* is the TAIL that it found nothing behind; *buffer* what it has stored and nobody else sees yet."""

    place: str = "idle"
    left: int = 1
    saw: int = 0
    counted: bool = False
    buffer: tuple[tuple[str, int], ...] = ()


class State(NamedTuple):
    processes: tuple[Process, ...]
    tail: int = 0
    head: int = 0
    sleepers: int = 0
    tail_lock: int = -1
    head_lock: int = -1
    asleep: tuple[int, ...] = ()


@dataclass
class Model:
    """Batches that each putter puts at once, and items that each getter takes one by one."""

    puts: tuple[tuple[int, ...], ...]
    gets: tuple[int, ...]
    mutant: str = ""

    def explore(self) -> int:
        """Walk all; the number of states. Raises Violation."""
        putters = [Process(left=len(batches)) for batches in self.puts]
        start = State((*putters, *(Process(left=count) for count in self.gets)))
        return walk(start, lambda state: list(self.steps(state)), lambda _: (), self.check, self.is_over)

    def is_over(self, state: State) -> bool:
        putters, getters = state.processes[: len(self.puts)], state.processes[len(self.puts) :]
        drained = not any(one.buffer for one in state.processes)
        all_put = not any(one.left for one in putters) and all(one.place == "idle" for one in putters)
        return all_put and drained and (state.head == state.tail or not any(one.left for one in getters))

    def check(self, state: State) -> None:
        if state.head > state.tail or state.sleepers < 0:
            raise Violation(f"more was taken than put: {state}")

    def to(self, state: State, number: int, one: Process) -> State:
        return state._replace(processes=(*state.processes[:number], one, *state.processes[number + 1 :]))

    def store(self, one: Process, word: str, value: int) -> Process:
        return one._replace(buffer=(*one.buffer, (word, value)))

    def drain(self, state: State, number: int, most: int = 9) -> State:
        one = state.processes[number]
        for word, value in one.buffer[:most]:
            state = state._replace(**{word: value})
        return self.to(state, number, one._replace(buffer=one.buffer[most:]))

    def load(self, state: State, one: Process, word: str) -> int:
        return dict(one.buffer).get(word, getattr(state, word))

    def unlock(self, state: State, number: int, lock: str) -> State:
        if self.mutant != "letting go is no fence":
            state = self.drain(state, number)
        return state._replace(**{lock: -1})

    def wake(self, state: State, count: int) -> State:
        for number in state.asleep[:count]:
            state = self.to(state, number, state.processes[number]._replace(place="idle"))
        return state._replace(asleep=state.asleep[count:])

    def steps(self, state: State) -> Iterator[State]:
        for number, one in enumerate(state.processes):
            if one.buffer:
                yield self.drain(state, number, 1)
            if number < len(self.puts):
                yield from self.put(state, number, one)
            else:
                yield from self.get(state, number, one)

    def put(self, state: State, number: int, one: Process) -> Iterator[State]:
        batch = self.puts[number][-one.left] if one.left else 0
        if one.place == "idle" and one.left and state.tail_lock < 0:
            state = self.drain(state, number)._replace(tail_lock=number)
            early = self.mutant == "a putter looks for sleepers first"
            saw = state.sleepers if early else 0
            yield self.to(state, number, state.processes[number]._replace(place="locked", saw=saw))
        elif one.place == "locked":
            stored = self.store(one, "tail", self.load(state, one, "tail") + batch)
            yield self.to(state, number, stored._replace(place="stored"))
        elif one.place == "stored":
            state = self.unlock(state, number, "tail_lock")
            yield self.to(state, number, state.processes[number]._replace(place="looks"))
        elif one.place == "looks":
            early = self.mutant == "a putter looks for sleepers first"
            sleepers = one.saw if early else state.sleepers
            state = self.to(state, number, one._replace(place="idle", left=one.left - 1, saw=0))
            if sleepers:
                state = self.wake(self.drain(state, number), 1 if "a batch wakes one" in self.mutant else batch)
            yield state

    def get(self, state: State, number: int, one: Process) -> Iterator[State]:
        if one.place == "idle" and one.left and state.head_lock < 0:
            state = self.drain(state, number)._replace(head_lock=number)
            yield self.to(state, number, state.processes[number]._replace(place="locked"))
        elif one.place == "locked":
            if one.counted:
                one = self.store(one, "sleepers", self.load(state, one, "sleepers") - 1)._replace(counted=False)
            head, tail = self.load(state, one, "head"), state.tail
            if head != tail:
                yield self.to(state, number, self.store(one, "head", head + 1)._replace(place="took"))
            elif self.mutant == "it lies down when it has let go":
                yield self.to(state, number, one._replace(place="uncounted", saw=tail))
            else:
                one = self.store(one, "sleepers", self.load(state, one, "sleepers") + 1)
                yield self.to(state, number, one._replace(place="lies", counted=True, saw=tail))
        elif one.place in ("took", "lies", "uncounted"):
            state = self.unlock(state, number, "head_lock")
            place = {"took": "passes on", "lies": "sleeps", "uncounted": "counts"}[one.place]
            yield self.to(state, number, state.processes[number]._replace(place=place))
        elif one.place == "counts":
            slept = state._replace(asleep=(*state.asleep, number))
            yield self.to(slept, number, one._replace(place="asleep"))
        elif one.place == "sleeps":
            state = self.drain(state, number)  # a call of the kernel
            one = state.processes[number]
            if state.tail != one.saw and self.mutant != "the kernel does not compare":
                yield self.to(state, number, one._replace(place="idle"))
            else:
                slept = state._replace(asleep=(*state.asleep, number))
                yield self.to(slept, number, one._replace(place="asleep"))
        elif one.place == "passes on":
            state = self.to(state, number, one._replace(place="idle", left=one.left - 1))
            if state.sleepers and state.tail != state.head and "nobody passes the bell on" not in self.mutant:
                state = self.wake(state, 1)
            yield state
