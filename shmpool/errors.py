"""Everything that shmpool raises on purpose; :class:`ShmpoolError` is above all of it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class ShmpoolError(Exception):
    """The root of shmpool's errors."""


class ConfigError(ShmpoolError, ValueError):
    """A setting is wrong, or this host lacks what shmpool needs."""


class BrokerUnavailable(ShmpoolError, ConnectionError):
    """No broker answered in time; says the address tried and how to start one."""

    #: Whether a broker may still come there: nobody listens yet, or who listens is silent.
    may_come = False


class ProtocolError(ShmpoolError):
    """A peer broke the protocol; the subclass says which side."""


class LocalProtocolError(ProtocolError):
    """This side sent what the broker does not accept."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow."""


class InvalidSize(ShmpoolError, ValueError):
    """A size that can never be leased: negative, or larger than the pool can hold."""


class SharedMemoryFull(ShmpoolError, MemoryError):
    """The host has no room (/dev/shm or the cgroup) although the pool's limit would allow
    it; says how much was asked for and how much there is."""


class PoolClosed(ShmpoolError, ValueError):
    """A pool was used after its close."""


class LeaseTimeout(ShmpoolError, TimeoutError):
    """No buffer within the deadline; says tier, limit and who keeps most."""


class PoolingRefused(ShmpoolError, ValueError):
    """POOLED was asked for, and the size is at or above the very-large threshold or
    above the largest pooled tier."""


class QuotaExceeded(ShmpoolError):
    """This client's or uid's quota is used up."""


class StaleHandle(ShmpoolError, LookupError):
    """The handle's buffer was reused, or belongs to another pool."""


class InvalidHandle(StaleHandle, ValueError):
    """These bytes are no handle at all."""


class HandleUsed(ShmpoolError, LookupError):
    """The ticket was opened, discarded or expired before, or is being opened elsewhere."""


class NotFound(ShmpoolError, LookupError):
    """No shared publication has that name, or it is gone."""


class NameTaken(ShmpoolError, ValueError):
    """Another shared publication has that name, or is being made for it."""


class ChecksumError(ShmpoolError):
    """A buffer's bytes are not those that were published (pools with checksums only)."""

    @classmethod
    def of(cls, nbytes: int, row: int, actual: int, stored: int) -> Self:
        """For what lies in a row."""
        return cls(
            f"the {nbytes} bytes of row {row} are not those that were published: CRC-32 is {actual:#010x},"
            f" published was {stored:#010x}"
        )


class FormatError(ShmpoolError, ValueError):
    """`get` of a buffer that `put` did not make, of one that is damaged, or of an object that needs
    what this process has not or ``allow`` does not name."""


class LeakedView(ShmpoolError, BufferError):
    """Strict mode: an array or slice of the view is still alive at publish or release."""


class LeaseReleased(ShmpoolError, ValueError):
    """A lease or buffer was used after its end."""


class TeeError(ShmpoolError, OSError):
    """The writer of a `ChunkedTeeReader` failed; says how many bytes were read and how many of them
    written. Its cause is the writer's exception."""


class StreamBroken(ShmpoolError, BrokenPipeError):
    """The other end of a stream is gone: closed, given up or dead; says after how many bytes."""


class StreamTimeout(ShmpoolError, TimeoutError):
    """The other end of a stream did nothing within the deadline; the stream goes on."""


def _shut_down() -> type[Exception]:
    """What the standard library raises for it, from Python 3.13 on; before, its `queue` is not worth the import."""
    if sys.version_info >= (3, 13):
        from queue import ShutDown

        return ShutDown
    return Exception


class QueueShutDown(ShmpoolError, _shut_down()):  # type: ignore[misc]
    """A queue was shut down: nothing may be put any more, or (once it is empty) got. From Python 3.13 on
    also a `queue.ShutDown`."""
