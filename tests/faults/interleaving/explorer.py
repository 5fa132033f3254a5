"""The search: every state that can be reached, breadth first, so that a story is a shortest one.

A search with a bound goes depth first, in an order drawn from a seed: else it would know all
beginnings and no end.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from . import nesting
from .clients import patched
from .memory import Violation
from .states import State_
from .world import World

if TYPE_CHECKING:
    from .scenarios import Scenario

#: A state from which time alone goes on for so many steps without coming to rest.
MAX_SETTLING = 20_000


@dataclass
class Result:
    """What an exploration found. *is_complete*: every reachable state was visited."""

    scenario: str
    mode: str
    states: int = 0
    steps: int = 0
    at_rest: int = 0
    local_states: int = 0
    seconds: float = 0.0
    is_complete: bool = True
    violation: str | None = None
    story: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.states / max(self.seconds, 1e-9)
        text = (
            f"{self.scenario:<28} {self.mode:<3} {self.states:>9,} states {self.steps:>10,} steps"
            f" {self.at_rest:>6,} at rest {self.local_states:>6,} local {self.seconds:>6.1f} s {rate:>8,.0f} states/s"
        )
        if not self.is_complete:
            text += " (stopped at the bound)"
        return text + (f"\n    {self.violation}" if self.violation else "")


def explore(
    scenario: Scenario, *, is_tso: bool, max_states: int | None = None, seed: int = 0, kind: type[World] = World
) -> Result:
    """Visit every state of a world of that kind; ends at the first violation, or at *max_states*."""
    places = nesting.visited() if scenario.has_visits else nullcontext()
    with patched(), kind.patched(), places, _no_collections():
        world = kind(scenario, is_tso=is_tso)
        try:
            return _Search(world, max_states, random.Random(seed)).run()
        finally:
            world.close()


class _Search:
    def __init__(self, world: World, max_states: int | None, chance: random.Random) -> None:
        self._world = world
        self._max_states = max_states
        self._chance = chance
        self._settled: set[State_] = set()
        self._result = Result(world.scenario.name, "TSO" if world.is_tso else "SC")

    def run(self) -> Result:
        result, began = self._result, time.perf_counter()
        first = self._world.initial()
        self._from: dict[State_, State_ | None] = {first: None}
        try:
            self._visit(deque([first]))
        except _Found as found:
            result.violation = str(found)
            result.story = self._story(found.state, str(found))
        result.states = len(self._from)
        result.local_states = len(self._world.nodes)
        result.seconds = time.perf_counter() - began
        return result

    def _visit(self, queue: deque[State_]) -> None:
        visited, result, bound = self._from, self._result, self._max_states
        take = queue.popleft if bound is None else queue.pop
        while queue:
            state = take()
            is_busy, found = False, []
            try:
                for step in self._world.successors(state):
                    result.steps += 1
                    is_busy = is_busy or step.kind == "step"
                    if step.state not in visited:
                        visited[step.state] = state
                        found.append(step.state)
            except Violation as violation:
                raise _Found(state, str(violation)) from None
            if not is_busy:
                result.at_rest += 1
                try:
                    self._check_rest(state)
                except Violation as violation:
                    raise _Found(state, f"once time passes: {violation}") from None
            if bound is not None:
                self._chance.shuffle(found)
                if len(visited) >= bound:
                    result.is_complete = False
                    return
            queue.extend(found)

    def _check_rest(self, state: State_) -> None:
        """Let time alone pass until nothing new comes of it; then all must be well."""
        world, seen = self._world, set()
        wrong = world.complaint_of_bells(state) if self._result.mode in world.scenario.bells_suffice else None
        now = state
        try:
            while wrong is None and now not in seen and now not in self._settled:
                seen.add(now)
                for what in world.timers:
                    now = self._let_pass(now, what)
        except Violation as violation:
            raise _Found(state, f"time passes: {violation}") from None
        if wrong is None and now not in self._settled:  # else it is on a way whose end was looked at
            wrong = world.complaint(now)
        self._settled |= seen
        if wrong is not None:
            raise _Found(state, f"at rest: {wrong}")

    def _let_pass(self, state: State_, what: str) -> State_:
        """One timer fires, and everything that comes of it is done."""
        steps = (step for step in self._world.successors(state) if step.kind == "time")
        found = next((step for step in steps if what in (step.what[-1], *step.what[-1])), None)
        for _ in range(MAX_SETTLING):
            if found is None:
                return state
            state = found.state
            found = next((step for step in self._world.successors(state) if step.kind == "step"), None)
        raise _Found(state, f"no rest after {MAX_SETTLING} steps")

    def _story(self, state: State_, end: str) -> list[str]:
        path = [state]
        while (before := self._from.get(path[-1])) is not None:
            path.append(before)
        path.reverse()
        return [self._between(a, b) for a, b in pairwise(path)] + [end]

    def _between(self, state: State_, after: State_) -> str:
        step = next(step for step in self._world.successors(state) if step.state == after)
        return self._world.text(step.party, step.what)


class _Found(Exception):
    def __init__(self, state: State_, text: str) -> None:
        super().__init__(text)
        self.state = state


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of tuples and no cycles to find; finalizers come when they are due."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
