"""Seats: who is connected, by what the kernel said, kept in the header for the next broker.

A seat belongs to one connection (its nonce), not to a process: a process may have two
pools. Its number is given out again only after all its rows are settled: `clear` is the
last thing done to a seat.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from shmpool.protocol.header import (
    SEAT_NONCE,
    SEAT_PID,
    SEAT_PID_NAMESPACE,
    SEAT_START,
    SEAT_STATE,
    SEAT_TIME_NAMESPACE,
    SEAT_UID,
    SEATS_ENDED,
    seat_at,
)

from ..actions import ProbeSeat
from ..chores import NEVER
from ..events import Peer
from ..outbox import Outbox
from ..owners import Owner

IN_USE = 1


@dataclass(slots=True, eq=False)
class Seat(Owner):
    """One client, the owner of what it was granted and has not given back. *connection* is
    None while it is away (its process may yet come back)."""

    number: int
    peer: Peer
    nonce: int
    connection: int | None = None
    #: Its client has gone; what it held is being settled.
    is_ending: bool = False
    #: Its process is watched: its end is seen at once. Else its byte is probed.
    is_seen: bool = True
    #: When it was asked last to give back what is idle.
    recalled_at: float = float("-inf")

    @property
    def process(self) -> tuple[int, int]:
        """Whose it is: a process may have many seats. One that cannot be seen is taken for one of its own."""
        return (self.peer.pid, self.peer.start_time) if self.peer.pid else (0, self.number)

    def is_for(self, peer: Peer, nonce: int) -> bool:
        """Whether a peer with this nonce is the one that had the seat before. Pid and start
        time are compared where they were seen alike: in another namespace the same process has
        others."""
        if (self.nonce, self.peer.uid) != (nonce, peer.uid):
            return False
        is_same = (self.peer.pid, self.peer.start_time) == (peer.pid, peer.start_time)
        return is_same or not self.peer.is_seen_like(peer)


class Seats:
    """All seats, mirrored in the header's seat table."""

    def __init__(self, header: MutableSequence[int], count: int) -> None:
        self._header = header
        self.count = count
        #: Asks the host for the pids of forked children that still read what a seat had open.
        self.children_of: Callable[[int], Sequence[int]] = lambda seat: ()
        self.taken: dict[int, Seat] = {}
        self._free = list(range(count, 0, -1))

    def take(self, peer: Peer, nonce: int, connection: int) -> Seat | None:
        """A new seat, or None when all are taken."""
        if not self._free:
            return None
        seat = Seat(self._free.pop(), peer, nonce, connection)
        self.taken[seat.number] = seat
        at = seat_at(seat.number)
        self._write_peer(at, peer)
        self._header[at + SEAT_NONCE] = nonce
        self._header[at + SEAT_STATE] = IN_USE  # last: a half-written seat is none
        return seat

    def _write_peer(self, at: int, peer: Peer) -> None:
        self._header[at + SEAT_PID] = peer.pid
        self._header[at + SEAT_START] = peer.start_time
        self._header[at + SEAT_UID] = peer.uid
        self._header[at + SEAT_PID_NAMESPACE] = peer.pid_namespace
        self._header[at + SEAT_TIME_NAMESPACE] = peer.time_namespace

    def resume(self, seat: Seat, peer: Peer, connection: int) -> None:
        """The client of a seat has connected again. What a broker in another namespace has
        noted of its process is noted anew; a broker that dies in between leaves a process that
        nobody finds, which is no evidence of anything."""
        if not seat.peer.is_seen_like(peer):
            self._write_peer(seat_at(seat.number), peer)
        seat.peer, seat.connection, seat.is_seen = peer, connection, True

    def adopt(self) -> list[Seat]:
        """The seats that an earlier broker had given out, all of them away."""
        for number in range(1, self.count + 1):
            at = seat_at(number)
            if self._header[at + SEAT_STATE] == IN_USE:
                pid, start, uid, nonce = (self._header[at + word] for word in range(4))
                namespaces = self._header[at + SEAT_PID_NAMESPACE], self._header[at + SEAT_TIME_NAMESPACE]
                self.taken[number] = Seat(number, Peer(pid, uid, 0, start, "", *namespaces), nonce)
        self._free = [number for number in self._free if number not in self.taken]
        return list(self.taken.values())

    def clear(self, seat: Seat) -> None:
        """End a seat whose rows are all settled."""
        self._header[seat_at(seat.number) + SEAT_STATE] = 0
        self._header[SEATS_ENDED] += 1  # behind it: who sees this sees that
        del self.taken[seat.number]
        self._free.append(seat.number)


class Away:
    """The seats that have no connection or whose process is unseen, and when each is to be
    probed next: a client that called exec has let go of its seat, though its process lives."""

    #: Seconds until the first probe, and between probes at the longest. An exec takes the kernel
    #: some milliseconds, more on a busy machine: it is found a quarter later than it could be.
    FIRST, LONGEST, GROWTH = 0.002, 1.0, 1.25
    #: Seats probed in one turn: after a restart all are away.
    PROBED_PER_TURN = 64

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        #: By seat, when it is due and how long the pause before that was.
        self._due: dict[int, tuple[float, float]] = {}
        #: The same as (due, seat), with some that are so no longer.
        self._heap: list[tuple[float, int]] = []

    def leave(self, seat: Seat, now: float) -> None:
        """A connection is gone, and nobody has said goodbye."""
        self._put(seat.number, now, self.FIRST)

    def hide(self, seat: Seat, now: float) -> None:
        """Its process cannot be watched. It may be about to sit down: that is not its end, and
        should it be taken for that, the client notices and takes another seat."""
        if seat.connection is not None:
            self._put(seat.number, now, self.LONGEST)

    def come_back(self, seat: Seat) -> None:
        """It is connected again, or has ended."""
        self._due.pop(seat.number, None)

    @property
    def next_deadline(self) -> float:
        """When somebody is to be probed. Asked after every event."""
        heap = self._heap
        while heap and self._due.get(heap[0][1], (None,))[0] != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def tick(self, now: float) -> None:
        """Probe those whose time it is; the next time after a longer pause."""
        for _ in range(self.PROBED_PER_TURN):
            if self.next_deadline > now:
                return
            _, number = heappop(self._heap)
            self._outbox.add(ProbeSeat(number))
            self._put(number, now, min(self.GROWTH * self._due[number][1], self.LONGEST))

    def _put(self, number: int, now: float, pause: float) -> None:
        self._due[number] = (now + pause, pause)
        heappush(self._heap, (now + pause, number))
