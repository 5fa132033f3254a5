"""Walks all states that steps lead to, for the models of the queue's protocol."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


class Violation(AssertionError):
    """What must not happen."""


def walk(
    start: S,
    steps: Callable[[S], Iterable[S]],
    misfortunes: Callable[[S], Iterable[S]],
    check: Callable[[S], object],
    is_over: Callable[[S], bool],
) -> int:
    """Every order of *steps* and *misfortunes*, which need not come; how many states there are. Raises Violation
    for a state that *check* refuses, and for one from which steps alone lead to none that *is_over*."""
    known, waiting = {start}, [start]
    came_from: dict[S, list[S]] = {}
    while waiting:
        state = waiting.pop()
        check(state)
        for follower in steps(state):
            came_from.setdefault(follower, []).append(state)
            if follower not in known:
                known.add(follower)
                waiting.append(follower)
        for follower in misfortunes(state):
            if follower not in known:
                known.add(follower)
                waiting.append(follower)
    done = [state for state in known if is_over(state)]
    can_end = set(done)
    while done:
        for state in came_from.get(done.pop(), ()):
            if state not in can_end:
                can_end.add(state)
                done.append(state)
    if stuck := known - can_end:
        raise Violation(f"it goes no further for ever: {min(stuck, key=repr)}")
    return len(known)
