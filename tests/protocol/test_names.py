"""Names of segments: each can be told back to its pool, no foreign name is taken for ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.errors import ConfigError
from shmpool.protocol import names
from shmpool.protocol.ledger import MAX_GENERATION, MAX_ROWS

pool_ids = st.integers(1, 2**64 - 1)


@given(pool_ids, st.integers(0, MAX_ROWS - 1), st.integers(0, MAX_GENERATION))
def test_direct_names_round_trip(pool_id: int, row: int, generation: int) -> None:
    name = names.direct_name(pool_id, row, generation)
    assert names.parse_direct_name(name) == (pool_id, row, generation)
    assert "/" not in name
    assert len(name) - len(names.PREFIX) <= 200, "NAME_MAX is 255, and a prefix has up to 41"


@given(pool_ids)
def test_every_name_tells_its_pool(pool_id: int) -> None:
    made = [
        names.header_name(pool_id),
        names.ledger_name(pool_id),
        names.tier_name(pool_id, 0),
        names.tier_name(pool_id, 31),
        names.direct_name(pool_id, 1, 1),
    ]
    assert len(set(made)) == len(made)
    for name in made:
        assert name.startswith(names.pool_prefix(pool_id))
        assert names.parse_pool_id(name) == pool_id


def test_no_pools_prefix_is_the_start_of_another_pools_names() -> None:
    assert not names.header_name(0x10).startswith(names.pool_prefix(0x1))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "psm_1234",
        "shmpool",
        "{}",
        "{}-header",
        "{}00000000000000ff",
        "{}00000000000000ff-",
        "{}ff-header",
        "{}zzzzzzzzzzzzzzzz-header",
        "{}0x000000000000ff-header",
        "{}0000_0000_0000ff-header",
        "{}              ff-header",
        "shmpool-00000000000000ff-header",
        "other-shmpool-00000000000000ff-header",
        "other-{}00000000000000ff-header",
    ],
)
def test_foreign_names_have_no_pool(name: str) -> None:
    name = name.format(names.PREFIX)
    assert names.parse_pool_id(name) is None
    assert names.parse_direct_name(name) is None


@pytest.mark.parametrize(
    "rest", ["header", "tier3", "direct-1", "direct-1-2-3", "direct-a-2", "direct--2", "direct-+1-2"]
)
def test_other_segments_are_not_direct_ones(rest: str) -> None:
    assert names.parse_direct_name(names.pool_prefix(255) + rest) is None


@given(st.text(max_size=60))
def test_any_text_can_be_parsed(text: str) -> None:
    for name in (text, names.PREFIX + text, names.pool_prefix(5) + text):
        names.parse_direct_name(name)
        names.parse_pool_id(name)


def test_the_files_of_locks_lie_beside_the_socket() -> None:
    assert names.tickets_path("/run/a.b/pool.sock") == "/run/a.b/pool.tickets.lock"
    assert names.seats_path("/run/a.b/pool.sock") == "/run/a.b/pool.seats.lock"


@pytest.mark.parametrize(
    ("apart", "prefix"), [("", "shmpool-"), ("a_1", "a_1-shmpool-"), ("Z" * 32, f"{'Z' * 32}-shmpool-")]
)
def test_a_run_s_names_begin_with_what_it_says(apart: str, prefix: str) -> None:
    assert names._prefix(apart) == prefix


@pytest.mark.parametrize("apart", ["Z" * 33, "a-b", "a.", "\u00e9", " ", "a/b"])
def test_a_run_says_letters_digits_and_underscores(apart: str) -> None:
    with pytest.raises(ConfigError, match="SHMPOOL_PREFIX"):
        names._prefix(apart)
