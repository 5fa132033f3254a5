"""What the wire's codes mean: whose fault it was, and whether trying again can help."""

from __future__ import annotations

from enum import IntEnum

from .codes import Code
from .frozen import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Blame(IntEnum):
    """Whose doing a refusal or a fault is."""

    CLIENT = 0
    BROKER = 1
    HOST = 2
    NOBODY = 3


class Meaning(NamedTuple):
    """Blame, whether to retry, and the sentence of docs/protocol.md."""

    blame: Blame
    retry: bool
    text: str


MEANINGS: Final = {
    Code.BAD_FRAME: Meaning(Blame.CLIENT, False, "the bytes are no frame of this protocol; the connection ends"),
    Code.BAD_MESSAGE: Meaning(Blame.CLIENT, False, "the message breaks its schema or the order; the connection ends"),
    Code.WRONG_VERSION: Meaning(Blame.CLIENT, False, "the broker speaks another protocol version"),
    Code.FORBIDDEN: Meaning(Blame.CLIENT, False, "this uid or gid may not use the broker"),
    Code.NO_SEAT: Meaning(Blame.BROKER, True, "all seats are taken; raise max_clients"),
    Code.STOPPING: Meaning(Blame.BROKER, True, "the broker is shutting down"),
    Code.EXHAUSTED: Meaning(Blame.NOBODY, True, "no memory under the limit now; the request did not ask to wait"),
    Code.TOO_LARGE: Meaning(Blame.CLIENT, False, "the object is larger than the pool can ever hold"),
    Code.SHM_FULL: Meaning(Blame.HOST, True, "/dev/shm or the cgroup has no room although the limit would allow it"),
    Code.QUOTA: Meaning(Blame.CLIENT, True, "the quota of this client or uid is used up"),
    Code.SLOW_READER: Meaning(Blame.CLIENT, True, "the client does not read what it is sent; the connection ends"),
    Code.CANCELLED: Meaning(Blame.CLIENT, True, "the request was cancelled by its client"),
    Code.NOT_FOUND: Meaning(Blame.CLIENT, False, "there is no such shared publication, or no longer"),
    Code.NAME_TAKEN: Meaning(Blame.CLIENT, False, "another shared publication has that name, or is being made for it"),
}

assert set(MEANINGS) == set(Code)
