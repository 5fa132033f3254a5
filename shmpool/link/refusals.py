"""What a lease that got nothing raises."""

from __future__ import annotations

from ..errors import (
    BrokerUnavailable,
    InvalidSize,
    LeaseTimeout,
    PoolClosed,
    QuotaExceeded,
    SharedMemoryFull,
    ShmpoolError,
)
from ..protocol.codes import Code
from ..protocol.messages import Refusal
from ..protocol.sizing import format_bytes

_ERRORS = {
    Code.TOO_LARGE: InvalidSize,
    Code.SHM_FULL: SharedMemoryFull,
    Code.QUOTA: QuotaExceeded,
    Code.STOPPING: BrokerUnavailable,
}


def refused(refusal: Refusal | None, nbytes: int, waited: float, away: str) -> ShmpoolError:
    """The error for a request of *nbytes* bytes that *waited* seconds; without a refusal nobody
    answered. *away* is the address of a broker that is not there just now, or nothing."""
    said = f"no buffer of {format_bytes(nbytes)} within {waited:.3g} s"
    if refusal is None:
        return LeaseTimeout(f"{said}; the broker at {away} is away" if away else f"{said}: the broker did not answer")
    error = _ERRORS.get(Code(refusal.code))
    return error(refusal.text) if error else LeaseTimeout(f"{said}: {refusal.text}")


class Forked(BrokerUnavailable):
    """A child that was forked in the middle of a request, by a finalizer or a signal handler, returned into it: its
    parent waits for that. `Pool.lease` asks anew there, from a seat of the child's own."""

    def __init__(self) -> None:
        super().__init__("this process was forked in the middle of a request; ask again")


def discarded(*, is_closing: bool, is_abandoned: bool, is_over: bool) -> ShmpoolError:
    """The error for a request whose seat ended, or whose broker did for good."""
    if is_abandoned:
        return Forked()
    if is_closing:
        return PoolClosed("the pool was closed while a lease waited")
    if not is_over:
        return BrokerUnavailable("the private broker was closed, by this process: there is nobody to ask any more")
    return BrokerUnavailable("the broker came back with another pool while a lease waited; lease again")
