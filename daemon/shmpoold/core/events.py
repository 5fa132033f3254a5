"""What can happen to a broker. The shell makes these; the core is told nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from shmpool.protocol.messages import Message

from .memory.pressure import Room
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, by the kernel's word: SO_PEERCRED, the
    process's start time (clock ticks since boot, /proc/PID/stat field 22), its command; and the
    namespaces of this broker, in which alone pid and start time mean a process."""

    pid: int
    uid: int
    gid: int
    start_time: int
    command: str
    pid_namespace: int = 0
    time_namespace: int = 0

    def is_seen_like(self, other: Peer) -> bool:
        """Whether pid and start time of both mean the same."""
        return (self.pid_namespace, self.time_namespace) == (other.pid_namespace, other.time_namespace)


@dataclass(frozen=True, slots=True)
class Connected:
    """A peer that may use this broker has connected; *connection* is the shell's number."""

    connection: int
    peer: Peer


@dataclass(frozen=True, slots=True)
class Received:
    """A message came that the schema accepts."""

    connection: int
    message: Message


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration was read again; of *settings* those count that a running broker may take
    over (`Settings.reloaded`)."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone, by EOF, error or our own Close."""

    connection: int


@dataclass(frozen=True, slots=True)
class ProcessDied:
    """The process of a seat has ended (a pidfd that we held says so), or it has let go of the
    seat (its byte lock is free). Nothing else is evidence."""

    seat: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """The process of a seat cannot be watched (its pid means nothing in our namespaces, or is
    another's now), which is no evidence of its death: its byte is held."""

    seat: int


@dataclass(frozen=True, slots=True)
class ReadersGone:
    """Nobody reads any more what a seat that has ended had open."""

    seat: int


@dataclass(frozen=True, slots=True)
class Warmed:
    """The pages of these rows are reserved: the answer to Warm."""

    tier: int
    row: int
    count: int


@dataclass(frozen=True, slots=True)
class WarmFailed:
    """They could not be reserved, none of them; *reason* is for people."""

    tier: int
    row: int
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class DirectCreated:
    """The direct segment of this row exists and has its size."""

    row: int


@dataclass(frozen=True, slots=True)
class DirectFailed:
    """It could not be made."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class TicketClosed:
    """CloseTicket was carried out: the cell is DONE, or it had been taken before."""

    row: int


@dataclass(frozen=True, slots=True)
class Started:
    """The broker begins: its pool is new, or adopted."""


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """How much memory the host has left, and which part of the last ten seconds some task waited
    for memory (None: the kernel does not say)."""

    rooms: tuple[Room, ...]
    stalled: float | None


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The broker is to end, and its pool with it, as soon as nothing is out: nothing new is lent."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """The time that next_deadline() named has come."""


Event = (
    Connected | Received | Reconfigured | Disconnected | ProcessDied | Unseen | ReadersGone | Warmed | WarmFailed
    | DirectCreated | DirectFailed | TicketClosed | Started | MemoryRead | StopAsked | Ticked
)  # fmt: skip
