"""When a peer that has used its turn up has the next: all of them together have a part of the time.

A peer is a process: what its connections ask for is one share, whether it has one of them or hundreds, or
one after the other: one whose connection had to be ended does not have a turn more by connecting anew.
A peer alone waits for `REST`. Many are given their next turns one after the other, with pauses
as long as leave the loop to everybody else for most of the time: however many flood the broker,
who has a single question waits for one of their turns at the longest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..core.events import Peer

#: Seconds until a peer that used its turn up has the next, at the earliest.
REST: Final = 0.005
#: How many times as long as it takes such a turn has to itself, so that many have together no more than
#: one alone; and the shortest that it counts for (seconds).
SPACING: Final = 8
SHORTEST: Final = 0.00025
#: Seconds of CPU that a connection counts as that we had to end: closing the socket with what lies in it unread
#: (0.7 ms for 200 KiB), and accepting the next one.
ENDING: Final = 0.001


class Share:
    """What the connections of one process have of the time: what is left of their turn, in frames and in
    seconds of CPU, and when it is whole again. Those that found it used up wait for the next in line."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self.connections = 0
        self.frames_left = 0
        self.cpu_left = 0.0
        self._cpu = 0.0
        self._whole_again = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_reserved = False

    @property
    def is_left(self) -> bool:
        """Whether anything is."""
        return self.frames_left > 0 and self.cpu_left > 0

    def renew(self, now: float, frames: int, cpu: float) -> None:
        """A new turn, if it is time."""
        if now >= self._whole_again:
            self.frames_left, self.cpu_left, self._cpu, self._whole_again = frames, cpu, cpu, now + REST

    def charge_ending(self) -> None:
        """A connection of it is ended, for what it did."""
        self.cpu_left -= ENDING

    def rest(self, now: float) -> float:
        """Wait for the next turn, where this one is used up. Returns when it begins."""
        if self._cpu and not self.is_left and not self._is_reserved:
            self._whole_again = self._turns.reserve(now, self._cpu - self.cpu_left)
        return self._whole_again

    def wait(self, now: float, go_on: Callable[[], None]) -> None:
        """*go_on* in the next turn, after those that wait already."""
        self._waiting.append(go_on)
        self._reserve(now)

    def _reserve(self, now: float) -> None:
        if not self._is_reserved:
            self._is_reserved = True
            self._whole_again = self._turns.reserve(now, self._cpu - self.cpu_left)
            self._loop.call_at(self._whole_again, self._begin)

    def _begin(self) -> None:
        """Those go on that this turn has room for."""
        self._is_reserved, self._whole_again = False, 0.0
        try:
            self._waiting.popleft()()
            while self._waiting and self.is_left:
                self._waiting.popleft()()
        finally:  # an error of one is not the others'
            if self._waiting:
                self._reserve(self._loop.time())


class Turns:
    """The time that is given to those who use their turns up."""

    def __init__(self) -> None:
        self._taken_until = 0.0
        self._shares: dict[tuple[int, int], Share] = {}

    def join(self, peer: Peer) -> Share:
        """The share of a new connection. Whose process cannot be seen has one of its own."""
        key = (peer.pid, peer.start_time)
        share = self._shares.get(key) if peer.pid else None
        if share is None:
            share = Share(self)
            if peer.pid:
                self._shares[key] = share
        share.connections += 1
        return share

    def leave(self, peer: Peer, share: Share) -> None:
        """A connection is gone. What was used up stays used up until the next turn, for whoever connects anew."""
        share.connections -= 1
        if share.connections == 0 and peer.pid:
            loop = asyncio.get_running_loop()
            begins = share.rest(loop.time())
            if share.is_left or begins <= loop.time():
                self._forget(peer, share)
            else:
                loop.call_at(begins, self._forget, peer, share)

    def _forget(self, peer: Peer, share: Share) -> None:
        key = (peer.pid, peer.start_time)
        if share.connections == 0 and self._shares.get(key) is share:
            del self._shares[key]

    def reserve(self, now: float, took: float) -> float:
        """When the next turn is of a peer whose last one took so many seconds of CPU."""
        begins = max(now + REST, self._taken_until)
        self._taken_until = begins + SPACING * max(took, SHORTEST)
        return begins
