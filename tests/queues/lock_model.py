"""The lock of a queue's end as an explicit-state model (see `shmpool.queues.locks`): a semaphore of which nobody
can tell who has it, a word of each process that says that it may be inside, and what a waiter does about the dead.

A step is one load, one store, or one read-modify-write. A process's own word passes through a store buffer: others see
it late, but not later than the process's next read-modify-write or system call. Deaths come before or after
each step. Mutants leave one ingredient out; each must be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from walking import Violation, walk


class Process(NamedTuple):
    """One of them. *says* is its word as others see it, *buffered* as it has stored it; *version* what it has
    loaded, or is about to store; *at* whom it looks at next, as who clears away a dead holder."""

    place: str = "idle"
    left: int = 1
    says: bool = False
    buffered: bool = False
    version: int = 0
    at: int = 0

    def drained(self) -> Process:
        return self._replace(says=self.buffered)


class State(NamedTuple):
    """All that there is: *version* says which of the semaphores counts; *mender* has the byte lock, -1 nobody."""

    processes: tuple[Process, ...]
    semaphores: tuple[int, ...]
    version: int = 0
    mender: int = -1


@dataclass
class Model:
    """*turns* is how often each process wants the lock; so many deaths may come in all."""

    turns: tuple[int, ...]
    deaths: int = 1
    versions: int = 8
    mutant: str = ""

    def explore(self) -> int:
        """Walk all; the number of states. Raises Violation."""
        start = State(tuple(Process(left=turns) for turns in self.turns), (1,) + (0,) * (self.versions - 1))
        return walk(
            start, lambda one: list(self.steps(one)), lambda one: list(self.endings(one)), self.check, self.is_over
        )

    def is_over(self, state: State) -> bool:
        """Whether all have had their turns; or the versions, which have no end, are used up."""
        return state.version == self.versions - 1 or all(one.place == "dead" or not one.left for one in state.processes)

    def check(self, state: State) -> None:
        inside = [number for number, one in enumerate(state.processes) if one.place == "inside"]
        if len(inside) > 1:
            raise Violation(f"{inside} are inside at once: {state}")

    def endings(self, state: State) -> Iterator[State]:
        """Somebody dies. What it had stored is seen, and its byte lock is free."""
        if sum(one.place == "dead" for one in state.processes) < self.deaths:
            for number, one in enumerate(state.processes):
                if one.place != "dead" and one.left:
                    mender = -1 if state.mender == number else state.mender
                    yield self.to(state, number, one.drained()._replace(place="dead"))._replace(mender=mender)

    def to(self, state: State, number: int, process: Process) -> State:
        processes = (*state.processes[:number], process, *state.processes[number + 1 :])
        return state._replace(processes=processes)

    def steps(self, state: State) -> Iterator[State]:
        for number, one in enumerate(state.processes):
            if one.place == "dead":
                continue
            if one.says != one.buffered:
                yield self.to(state, number, one.drained())
            if one.left:
                yield from self.step(state, number, one)

    def step(self, state: State, number: int, one: Process) -> Iterator[State]:
        place, mutant = one.place, self.mutant
        at = one.version % self.versions
        if place == "idle":
            says = mutant != "it says so when it has it"
            yield self.to(state, number, one._replace(place="wants", version=state.version, buffered=says))
        elif place == "wants":
            if state.semaphores[at]:
                taken = self.semaphore(state, at, 0)
                yield self.to(taken, number, one.drained()._replace(place="has"))
            else:  # a load: nothing is drained
                yield self.to(state, number, one._replace(place="waits", buffered=False))
        elif place == "has":
            is_current = one.version == state.version or mutant == "it does not look at the version again"
            one = one._replace(buffered=True)
            yield self.to(state, number, one._replace(place="inside" if is_current else "leaves"))
        elif place == "inside":
            if mutant == "it says nothing before it lets go":
                yield self.to(state, number, one._replace(place="unsaid", buffered=False))
            else:
                yield self.to(state, number, one._replace(place="done"))
        elif place == "unsaid":
            let_go = self.semaphore(state, at, state.semaphores[at] + 1)
            yield self.to(let_go, number, one.drained()._replace(place="idle", left=one.left - 1))
        elif place in ("leaves", "done"):
            let_go = self.semaphore(state, at, state.semaphores[at] + 1)
            yield self.to(let_go, number, one.drained()._replace(place="out of " + place))
        elif place in ("out of leaves", "out of done"):
            left = one.left - (place == "out of done")
            yield self.to(state, number, one._replace(place="idle", buffered=False, left=left))
        elif place == "waits":
            yield self.to(state, number, one._replace(place="idle"))
            if state.mender < 0 or mutant == "many may mend":
                locked = state._replace(mender=number)
                yield self.to(locked, number, one.drained()._replace(place="mends"))
        else:
            yield from self.mend(state, number, one)

    def semaphore(self, state: State, at: int, value: int) -> State:
        return state._replace(semaphores=(*state.semaphores[:at], value, *state.semaphores[at + 1 :]))

    # --- what a waiter does about the dead -----------------------------------------------------------------

    def mend(self, state: State, number: int, one: Process) -> Iterator[State]:
        place, mutant = one.place, self.mutant
        new = state.version + 1
        if place == "mends":
            if not self.dead(state):
                yield self.leave(state, number, one)
            elif mutant == "the version stays":
                yield self.to(state, number, one._replace(place="looks", at=0, version=state.version))
            elif new < self.versions:  # more are argued, see `locks`
                yield self.to(self.semaphore(state, new, 0), number, one._replace(place="closed", version=new))
        elif place == "closed":
            yield self.to(state._replace(version=one.version), number, one._replace(place="looks", at=0))
        elif place == "looks":
            yield self.leave(state, number, one)  # its time is over
            if one.at == len(self.turns) or mutant == "it does not wait for those inside":
                after = "opened" if mutant != "the dead are forgotten first" else "forgets"
                dead = sum(1 << at for at, other in enumerate(state.processes) if other.place == "dead")
                yield self.to(self.opened(state, one, after), number, one._replace(place=after, at=dead))
            elif one.at == number or state.processes[one.at].place == "dead" or not state.processes[one.at].says:
                yield self.to(state, number, one._replace(at=one.at + 1))
        elif place == "opened":
            late = mutant == "those who die late are forgotten too"
            yield self.leave(self.without_dead(state, -1 if late else one.at), number, one)
        elif place == "forgets":
            yield self.to(self.without_dead(state, -1), number, one._replace(place="opens"))
        elif place == "opens":
            yield self.leave(self.semaphore(state, one.version, 1), number, one)

    def opened(self, state: State, one: Process, after: str) -> State:
        return state if after == "forgets" else self.semaphore(state, one.version, 1)

    def dead(self, state: State) -> bool:
        return any(one.place == "dead" and one.says for one in state.processes)

    def without_dead(self, state: State, which: int) -> State:
        processes = [
            one._replace(says=False, buffered=False) if one.place == "dead" and which >> number & 1 else one
            for number, one in enumerate(state.processes)
        ]
        return state._replace(processes=tuple(processes))

    def leave(self, state: State, number: int, one: Process) -> State:
        mender = -1 if state.mender == number else state.mender
        return self.to(state, number, one.drained()._replace(place="idle", at=0))._replace(mender=mender)
