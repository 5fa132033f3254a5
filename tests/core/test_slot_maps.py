"""Slot maps at the bounds of what a lease may have, and what was taken out of them."""

from __future__ import annotations

import pytest

from shmpool.protocol.sizing import PAGE, Tier, TierKind
from shmpoold.core.memory import slots
from shmpoold.core.memory.holding import Holding
from shmpoold.core.memory.slots import SlotMap


@pytest.mark.parametrize("most", [3, 4])
def test_a_run_has_as_many_pieces_as_a_lease_may_have_and_no_more(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_EXTENTS", most)
    monkeypatch.setattr(slots, "FEW_PIECES", 2)
    free = SlotMap(Tier(0, TierKind.CHUNK, PAGE, 1, 8))
    for row in (2, 4, 6, 8):
        free.take(row, 1)
    pieces = ((1, 1), (3, 1), (5, 1), (7, 1))
    assert free.placeable == most
    assert free.scatter(4) == (pieces if most == 4 else None)
    assert free.scatter(3) == pieces[:3]


def test_the_first_slot_of_a_tier_is_cooled_like_the_others() -> None:
    free = SlotMap(Tier(0, TierKind.POOLED, PAGE, 1, 3))
    free.take(1, 1)
    free.set_warm(1, 1, 0.0)
    assert free.coolable(9) is None
    free.give(1, 1, 0.0)
    assert free.coolable(9) == (1, 1)
    free.set_cold(1, 1)
    assert free.coolable(9) is None


@pytest.mark.parametrize(("extents", "chunks"), [(((3, 4),), 4), (((3, 1), (7, 2)), 3), (((3, 1), (5, 1), (9, 5)), 7)])
def test_what_is_held_is_all_of_its_pieces(extents: tuple[tuple[int, int], ...], chunks: int) -> None:
    holding = Holding(3, Tier(0, TierKind.CHUNK, PAGE, 1, 20), extents)
    assert (holding.chunks, holding.nbytes) == (chunks, chunks * PAGE)
