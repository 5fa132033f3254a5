"""What was taken out of the pool's memory for somebody: a slot, a run or several, a direct segment."""

from __future__ import annotations

from dataclasses import dataclass, field

from shmpool.protocol.sizing import Tier, TierKind

from ..owners import Owner
from .slots import Extent, Mask


@dataclass(slots=True, eq=False)
class Holding:
    """Something granted: a slot, a run or several, a direct segment. It goes by its
    head's row; its *extents* are in order."""

    row: int
    tier: Tier
    extents: tuple[Extent, ...]
    #: None before it is granted, and once it is free or quarantined.
    owner: Owner | None = None
    #: The seat that it was granted to, whoever owns it by now: its process has it mapped. 0 once that
    #: has ended.
    publisher: int = 0
    #: Bytes of a direct segment, whole pages.
    direct_bytes: int = 0
    #: When its publisher was seen to be gone.
    orphaned_at: float | None = None
    #: When it was granted; ages are the broker's.
    granted_at: float = 0.0
    #: When a direct segment's pages were reserved first, by whichever object.
    made_at: float = 0.0
    #: The head's generation when it was granted: a run's birth; when it was made: a direct segment's name.
    birth: int = 0
    #: The head's generation when it was granted, or a lower one where that is not known: it only grows.
    least: int = 0
    #: The first row of a run's second extent, 0 for none.
    following: int = 0
    #: It was given up before it was granted.
    is_over: bool = False
    #: The marks of a run that may have many pieces.
    mask: Mask | None = None
    #: How many rows it has.
    chunks: int = field(init=False)

    def __post_init__(self) -> None:
        self.chunks = self.extents[0][1] if len(self.extents) == 1 else sum(count for _, count in self.extents)

    @property
    def nbytes(self) -> int:
        """Memory that it holds, in bytes."""
        return self.direct_bytes or self.tier.size * self.chunks

    @property
    def is_large(self) -> bool:
        """It is a run or a direct segment: one of the large operations that may be bounded."""
        return self.tier.kind is not TierKind.POOLED
