"""The ladder: what is tried in order for a request, and how often each rung served.

Each rung costs somebody more than the one before: nobody; the host; whoever would have made use of a
cache, or of the idle slots; the bytes that a larger slot wastes; those who are asked to give back; a
segment made for one object; time. Nothing is cooled, recalled or made for a request that would not be
served by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shmpool.protocol.ledger import MAX_CHUNKS
from shmpool.protocol.sizing import Tier, TierKind

from ..memory.clearings import Clearings
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..memory.stock import BUILT_PER_STEP
from .earmarks import Earmarks
from .evictions import Evictions
from .grants import Grants
from .large import LargeOperations
from .quotas import Quotas, Room
from .recalls import RECALL_EVERY
from .requests import Request, Rung, WaitingLine


def places(request: Request, tiers: Sequence[Tier]) -> Iterator[tuple[Tier, int]]:
    """Tiers that may serve a request, and in how many chunks each: its own first, then larger slots for
    a slot, then runs; of these those with least waste first."""
    own = request.tier
    yield own, request.chunks
    if own.kind is TierKind.DIRECT:
        return
    others: list[tuple[int, int, int, int]] = []
    for tier in tiers[:-1]:
        if tier is not own:
            chunks = -(-request.wanted_bytes // tier.size)
            is_slot = tier.kind is own.kind is TierKind.POOLED and chunks == 1
            if is_slot or (tier.kind is TierKind.CHUNK and chunks <= min(tier.capacity, MAX_CHUNKS)):
                others.append((tier.kind, chunks * tier.size, chunks, tier.index))
    for _, _, chunks, index in sorted(others):
        yield tiers[index], chunks


class Ladder:
    """Serves requests by the first rung that can."""

    def __init__(
        self,
        inventory: Inventory,
        line: WaitingLine,
        grants: Grants,
        large: LargeOperations,
        quotas: Quotas,
        earmarks: Earmarks,
        clearings: Clearings,
        evictions: Evictions,
    ) -> None:
        #: Whether what slots and runs cannot serve gets a direct segment.
        self.has_fallback = True
        #: How often each rung served, since this broker began.
        self.served = dict.fromkeys(Rung, 0)
        self._inventory = inventory
        self._line = line
        self._grants = grants
        self._large = large
        self._quotas = quotas
        self._earmarks = earmarks
        self._clearings = clearings
        self._evictions = evictions

    def climb(self, request: Request, now: float, *, may_warm: bool = True) -> bool:
        """Grant, or begin to warm, the least that satisfies a request or up to what it
        asked for; False when it has to wait. Short of rows, caches of its tier make room."""
        if not self._is_there_enough(request):
            return False
        slots = self._inventory.maps[request.tier.index]
        while not self._climb(request, now, may_warm=may_warm):
            before = request.given_up
            if slots.unused < request.chunks and self._evictions.make_rows(request, now):
                return True
            if request.given_up == before:
                request.given_up = 0
                return False
        return True

    def _is_there_enough(self, request: Request) -> bool:
        """False where no rung can serve it, for want of memory: asked for all who wait, whenever something has
        come back."""
        inventory = self._inventory
        room = max(0, inventory.limit - inventory.held) + inventory.idle  # more may be held than is allowed by now
        return (
            request.wanted_bytes <= room
            or self._quotas.is_on
            or request.wanted_bytes <= room + self._evictions.nbytes()
        )

    def _climb(self, request: Request, now: float, *, may_warm: bool) -> bool:
        inventory = self._inventory
        inventory.to_clear = 0
        room = self._quotas.room(request, now) if self._quotas.is_on else None
        if self._quotas.is_on and not (room and room.count(request.wanted_bytes)):
            self._quotas.hold(request, now)
            return True
        for tier, chunks in places(request, inventory.tiers):
            most = self._most(request, tier, request.nbytes or tier.size * chunks, room)
            if most <= 0:
                continue
            if self._line or tier is not request.tier:
                most = 1
            if tier.kind is TierKind.DIRECT:
                if may_warm and self._make_direct(request, now):
                    return True
            elif self._take_slots(request, tier, chunks, most, now, may_warm=may_warm):
                return True
            if inventory.to_clear:
                return self._clear(request, now)
        return may_warm and self._fall_back(request, room, now)

    def _most(self, request: Request, tier: Tier, nbytes: int, room: Room | None) -> int:
        """How many buffers of *nbytes* bytes a request may have of a tier."""
        most = self._earmarks.allow(request, tier, nbytes)
        if room is not None:
            most = min(most, room.count(nbytes))
        return most if tier.kind is TierKind.POOLED else min(most, self._large.left)

    # --- rungs ---------------------------------------------------------------------------------------

    def take_ready(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        """Up to so many slots or runs that are warm and nobody's; of runs that are written in several turns one."""
        if chunks == 1 < count:
            return self._inventory.take_slots(tier, count)
        if chunks > BUILT_PER_STEP:
            count = min(count, 1)
        holdings: list[Holding] = []
        while len(holdings) < count and (holding := self._inventory.take_ready(tier, chunks)):
            holdings.append(holding)
        return holdings

    def _take_slots(self, request: Request, tier: Tier, chunks: int, most: int, now: float, *, may_warm: bool) -> bool:
        holdings, rung = self.take_ready(tier, chunks, most), Rung.READY
        if not holdings and may_warm:
            if self._evictions.make_room(request, tier.size * chunks, now):
                return True
            holdings = self._inventory.take_cold(tier, chunks, most)
            rung = Rung.COOL if self._inventory.has_cooled else Rung.WARM
        if holdings:
            self._note(request, rung if tier is request.tier else Rung.LARGER)
        return self._grants.grant_or_warm(request, holdings, now)

    def _make_direct(self, request: Request, now: float) -> bool:
        if self._evictions.make_room(request, request.nbytes, now):
            return True
        if not self._grants.create_direct(request):
            return False
        self._note(request, Rung.COOL if self._inventory.has_cooled else Rung.WARM)
        return True

    def _clear(self, request: Request, now: float) -> bool:
        self._note(request, Rung.COOL)
        self._clearings.begin(request, self._inventory.to_clear, now)
        return True

    def _fall_back(self, request: Request, room: Room | None, now: float) -> bool:
        """A direct segment for what slots and runs cannot serve, once those were asked who might give
        some back: rows are missing then, or what is free is in too many pieces."""
        direct = self._inventory.tiers[-1]
        if not self.has_fallback or request.tier is direct or not self._has_recalled(request, now):
            return False
        if self._most(request, direct, request.wanted_bytes, room) <= 0:
            return False
        if self._grants.create_direct(request):
            request.rung = Rung.FALLBACK
            return True
        return self._inventory.to_clear > 0 and self._clear(request, now)

    def _has_recalled(self, request: Request, now: float) -> bool:
        """Whether nobody is left to be asked for what a request needs: all were, a moment ago, or it
        does not wait, or nothing is out."""
        if not request.queue or not self.is_anything_out:
            return True
        return request.joined_at is not None and now >= request.joined_at + RECALL_EVERY

    @property
    def is_anything_out(self) -> bool:
        """Whether anything could come back."""
        inventory = self._inventory
        return bool(inventory.granted or inventory.leaving or self._grants or self._clearings or self._evictions)

    # --- counts --------------------------------------------------------------------------------------

    def _note(self, request: Request, rung: Rung) -> None:
        """Idle slots that were cooled for it, in several turns maybe, stay what served it; so do caches that
        were given up, whose slots are idle then, and are cooled."""
        if request.rung not in (Rung.EVICT, Rung.COOL):
            request.rung = rung

    def count(self, request: Request, now: float) -> None:
        """A request was granted: by what came back, if it had to wait for that."""
        rung = request.rung or Rung.READY
        if request.joined_at is not None and rung is not Rung.FALLBACK:
            rung = Rung.RECALL if now < request.joined_at + RECALL_EVERY else Rung.WAIT
        self.served[rung] += 1
