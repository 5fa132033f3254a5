"""Values of the vocabulary are what dataclasses would be: set once, equal and picklable by what they say."""

from __future__ import annotations

import copy
import pickle

import pytest

from shmpool import Sizing
from shmpool.protocol.sizing import MIB, Tier, TierKind

TIER = Tier(3, TierKind.POOLED, 4096, 17, 100)


def test_a_value_equals_another_of_the_same_and_survives_copying() -> None:
    for value in (TIER, Sizing()):
        for other in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert other == value
            assert hash(other) == hash(value)
    assert Sizing().but(very_large_object_threshold=2 * MIB) != Sizing()
    assert TIER != (3, TierKind.POOLED, 4096, 17, 100)
    assert repr(TIER) == "Tier(base=17, capacity=100, index=3, kind=<TierKind.POOLED: 0>, size=4096)"


def test_a_value_does_not_change() -> None:
    with pytest.raises(AttributeError, match="make another one"):
        TIER.size = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del TIER.size
    with pytest.raises(AttributeError):
        TIER.other = 1  # type: ignore[attr-defined]
    assert TIER.size == 4096
