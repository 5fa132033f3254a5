"""What the core wants done. The shell obeys, in order, and reports by events."""

from __future__ import annotations

from dataclasses import dataclass

from shmpool.protocol.messages import Message

from .events import Peer
from .memory.spares import Spare


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; a connection that does not read is the shell's to end."""

    connection: int
    message: Message


@dataclass(frozen=True, slots=True)
class Close:
    """End a connection once what was sent to it is written (bounded in time)."""

    connection: int


@dataclass(frozen=True, slots=True)
class Warm:
    """Reserve the pages of *count* adjacent rows of a tier. Answered by Warmed or
    WarmFailed, never from within: other events come between."""

    tier: int
    row: int
    count: int


@dataclass(frozen=True, slots=True)
class Cool:
    """Give the pages of *count* adjacent rows of a tier back to the host. No answer. Of rows that
    were not warm (*had_pages* is false) only a crash can have left any."""

    tier: int
    row: int
    count: int
    had_pages: bool = True


@dataclass(frozen=True, slots=True)
class CreateDirect:
    """Make the direct segment of a row, of *nbytes* bytes (whole pages): a new one with no
    pages reserved, which its writer does, or of a *spare* that is there: as it lies under its own name, or longer
    under another. Answered by DirectCreated or DirectFailed; then there is neither segment nor spare."""

    row: int
    generation: int
    nbytes: int
    spare: Spare | None = None


@dataclass(frozen=True, slots=True)
class RemoveDirect:
    """Unlink the direct segment of a row. No answer; missing is fine. One that *may_be_mapped*
    still must keep its length: whoever touched what is cut off would die."""

    row: int
    generation: int
    may_be_mapped: bool = False


@dataclass(frozen=True, slots=True)
class RemoveBell:
    """Unlink the bell of a queue that is gone. No answer; missing is fine."""

    row: int
    generation: int


@dataclass(frozen=True, slots=True)
class WatchConnected:
    """Watch the process behind this connection on behalf of a seat; Unseen when it cannot be."""

    seat: int
    connection: int


@dataclass(frozen=True, slots=True)
class WatchAdopted:
    """See whether a seat taken over from an earlier broker is somebody's still: ProcessDied
    when its byte is free. Else watch its *peer* by pid and start time, as far as they mean
    anything here; Unseen when they do not, or when there is no such process."""

    seat: int
    peer: Peer


@dataclass(frozen=True, slots=True)
class ProbeSeat:
    """Try the byte lock of a seat that is away: if it is free, the client has let go of all
    that it had (it called exec, say) though its process lives. Answered by ProcessDied, or
    not at all while the lock is held."""

    seat: int


@dataclass(frozen=True, slots=True)
class ProbeReaders:
    """Look whether anybody reads what a seat that has ended had open: its children may. Answered by
    ReadersGone, or not at all while somebody does."""

    seat: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    """The seat has ended; its process is no longer of interest."""

    seat: int


@dataclass(frozen=True, slots=True)
class TakeTicket:
    """By compare-and-swap: if a ticket says *pending*, take it for a seat. No answer: the cell says."""

    row: int
    cell: int
    pending: int
    seat: int


@dataclass(frozen=True, slots=True)
class CloseTicket:
    """Under the ticket's byte lock, or by compare-and-swap: if its cell still equals *granted*, store DONE.
    Answered by TicketClosed."""

    row: int
    cell: int
    granted: int


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the log."""

    text: str
    is_warning: bool = False


Action = (
    Send
    | Close
    | Warm
    | Cool
    | CreateDirect
    | RemoveDirect
    | RemoveBell
    | WatchConnected
    | WatchAdopted
    | ProbeSeat
    | ProbeReaders
    | Unwatch
    | TakeTicket
    | CloseTicket
    | Log
)
