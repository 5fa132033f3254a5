"""What of what is granted was granted since a moment, counted along, is what a look at all says."""

from __future__ import annotations

import random

import pytest

from shmpool.protocol.sizing import KIB, Tier, TierKind
from shmpoold.core.memory.holding import Holding
from shmpoold.core.memory.turnover import BYTES, FINENESS, PERIOD, PERIODS, Turnover

POOLED = Tier(0, TierKind.POOLED, 4 * KIB, 100, 1)
CHUNKS = Tier(1, TierKind.CHUNK, 64 * KIB, 100, 101)


def amount(holding: Holding, kind: int) -> int:
    if kind == BYTES:
        return holding.nbytes
    return holding.chunks if holding.tier.index == kind else 0


@pytest.mark.parametrize("seed", range(4))
def test_no_more_is_counted_than_was_granted_since_and_nearly_all_of_it(seed: int) -> None:
    chance, turnover, now = random.Random(seed), Turnover(), 100.0
    out: list[Holding] = []
    moments = [now]
    for _ in range(6000):
        now += chance.choice((0.0, 0.001, 0.05, 0.3))
        if out and chance.random() < 0.48:
            turnover.remove(out.pop(chance.randrange(len(out))))
        else:
            tier = chance.choice((POOLED, CHUNKS))
            holding = Holding(tier.base, tier, ((tier.base, chance.randrange(1, 5)),), granted_at=now)
            turnover.add(holding)
            out.append(holding)
        if chance.random() < 0.3:
            exactly = chance.random() < 0.2
            turnover.mark(now, exactly=exactly)
            moments.append(now)
            kind = chance.choice((BYTES, CHUNKS.index))
            moment = chance.choice(moments)
            slack = max(2 * PERIOD, (now - moment) / FINENESS)
            counted = turnover.since(moment, kind)
            assert counted <= sum(amount(one, kind) for one in out if one.granted_at > moment)
            assert counted >= sum(amount(one, kind) for one in out if one.granted_at > moment + slack)
            if exactly:
                assert turnover.since(now, kind) == 0
    assert len(turnover._starts) <= PERIODS
