"""The handle: 24 bytes that name a publication and one of its tickets.

Three little-endian 64-bit words: pool id; the published grant word, which the ticket's
PENDING cell equals, so that opening is plain equality; and the cell's index (row * 16 +
cell, 24 bits) above the length in bytes (40 bits).
"""

from __future__ import annotations

import struct

from ..errors import InvalidHandle
from .ledger import MAX_NBYTES, NBYTES_BITS, generation_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, SupportsIndex

HANDLE_BYTES: Final = 24
_LAYOUT: Final = struct.Struct("<QQQ")
pack_handle = _LAYOUT.pack
unpack_handle = _LAYOUT.unpack

assert _LAYOUT.size == HANDLE_BYTES


class Handle(bytes):
    """Names one published buffer and one reader's ticket for it.

    Frozen, hashable and picklable; ``bytes(handle)`` are its 24 bytes, good to send over
    any channel, and :meth:`from_bytes` brings them back. A handle opens once. It carries
    no memory address and is valid in every process of the same host that uses the pool.
    """

    __slots__ = ()
    #: Where users find it, and where pickle finds it in less time, which is most of what pickling one costs.
    __module__ = "shmpool"

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Handle:
        """The handle in 24 bytes. Anything of another length is `InvalidHandle`;
        whether it still names a publication shows when it is opened."""
        try:
            raw = bytes(memoryview(data))  # of a number bytes would make as many zeros
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # somebody else's: of a signal handler, or of what makes its buffer
            raise TypeError(f"the {HANDLE_BYTES} bytes of a handle are expected, not {type(data).__name__}") from None
        if len(raw) != HANDLE_BYTES:
            raise InvalidHandle(f"a handle is {HANDLE_BYTES} bytes long, these are {len(raw)}")
        return cls(raw)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[Handle], tuple[bytes]]:
        """As its class and its bytes: what a subclass of bytes does by itself takes half as long again."""
        return type(self), (self[:],)

    @property
    def nbytes(self) -> int:
        """Length of the published buffer in bytes."""
        return int(unpack_handle(self)[2]) & MAX_NBYTES

    @property
    def pool_id(self) -> int:
        """The pool that it belongs to."""
        return int(unpack_handle(self)[0])

    @property
    def row(self) -> int:
        """The ledger row of the publication."""
        return int(unpack_handle(self)[2]) >> NBYTES_BITS + 4

    @property
    def ticket(self) -> int:
        """Which of the publication's tickets, from 0."""
        return int(unpack_handle(self)[2]) >> NBYTES_BITS & 15

    @property
    def generation(self) -> int:
        """The row's generation when it was published."""
        return generation_of(int(unpack_handle(self)[1]))

    def __repr__(self) -> str:
        if len(self) != HANDLE_BYTES:
            return f"Handle({bytes(self)!r})"
        return (
            f"<Handle row={self.row} generation={self.generation} ticket={self.ticket}"
            f" nbytes={self.nbytes} pool={self.pool_id:016x}>"
        )

    __str__ = __repr__
