"""The interface of a peer. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plan import Plan


class Absent(Exception):
    """The peer cannot be installed or started here; the message says why."""


class Peer:
    """Two processes that hand objects over. Made in the producer's process before it forks
    the consumer's; then each side begins, runs lap after lap, and ends."""

    #: Bytes of the token that travels over the harness's channel, 0 for a peer that has a
    #: channel of its own and moves or announces each object itself.
    token_bytes = 24

    def __init__(self, **settings: Any) -> None:
        """Make what both processes inherit. Raises `Absent`."""

    def begin_producer(self) -> None:
        """After the fork, in the producer."""

    def begin_consumer(self) -> None:
        """After the fork, in the consumer, once the producer has begun."""

    def producer(self, plan: Plan, source: bytes) -> Callable[[], Any]:
        """A function that makes one object of *source* and returns its token; without
        tokens it sends the object."""
        raise NotImplementedError

    def consumer(self, plan: Plan, target: memoryview) -> Callable[..., None]:
        """A function that takes the object of one token, reads it, into *target* if the
        plan says so, and frees it; without tokens it waits for the next object. (*target*
        is no bytearray: assigning to a slice of one makes a copy of the value first.)"""
        raise NotImplementedError

    def end_consumer(self) -> None:
        """In the consumer, before it exits."""

    def end_producer(self) -> None:
        """In the producer, when the consumer is gone: free everything."""
