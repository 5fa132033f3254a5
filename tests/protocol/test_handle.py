"""The 24 bytes of a handle: what they say, how they travel, what is refused. Whether a
handle still opens is the client's matter and tested there."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.errors import InvalidHandle, ShmpoolError, StaleHandle
from shmpool.protocol.handle import HANDLE_BYTES, Handle, pack_handle
from shmpool.protocol.ledger import MAX_GENERATION, MAX_NBYTES, MAX_ROWS, NBYTES_BITS, grant_word
from shmpool.protocol.states import State


def make(pool_id: int = 7, row: int = 3, ticket: int = 2, nbytes: int = 1000, generation: int = 9) -> Handle:
    granted = grant_word(generation, State.PUBLISHED, 5)
    return Handle(pack_handle(pool_id, granted, (row * 16 + ticket) << NBYTES_BITS | nbytes))


@given(
    pool_id=st.integers(0, 2**64 - 1),
    row=st.integers(0, MAX_ROWS - 1),
    ticket=st.integers(0, 12),
    nbytes=st.integers(0, MAX_NBYTES),
    generation=st.integers(0, MAX_GENERATION),
)
def test_a_handle_says_what_it_was_made_of(pool_id: int, row: int, ticket: int, nbytes: int, generation: int) -> None:
    handle = make(pool_id, row, ticket, nbytes, generation)
    assert len(bytes(handle)) == HANDLE_BYTES == 24
    assert (handle.pool_id, handle.row, handle.ticket) == (pool_id, row, ticket)
    assert (handle.nbytes, handle.generation) == (nbytes, generation)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_handle_survives_pickling(protocol: int) -> None:
    handle = make()
    again = pickle.loads(pickle.dumps(handle, protocol))
    assert type(again) is Handle
    assert again == handle
    assert again.nbytes == 1000


def test_copies_are_equal_handles() -> None:
    handle = make()
    for again in (copy.copy(handle), copy.deepcopy(handle)):
        assert type(again) is Handle
        assert again == handle


def test_handles_are_frozen() -> None:
    handle = make()
    with pytest.raises(AttributeError):
        handle.nbytes = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        handle.note = "x"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        handle[0] = 1  # type: ignore[index]


def test_equal_handles_hash_alike_and_each_ticket_is_another_handle() -> None:
    assert hash(make()) == hash(make())
    assert len({make(), make(), make(ticket=3), make(generation=10)}) == 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_from_bytes_takes_every_kind_of_bytes(kind: type) -> None:
    handle = make()
    again = Handle.from_bytes(kind(bytes(handle)))
    assert type(again) is Handle
    assert again == handle
    assert hash(again) == hash(handle)


def test_from_bytes_does_not_alias_what_it_was_given() -> None:
    data = bytearray(bytes(make()))
    handle = Handle.from_bytes(data)
    data[:] = bytes(24)
    assert handle == make()


@pytest.mark.parametrize("length", [0, 1, 23, 25, 48, 4096])
def test_other_lengths_are_invalid_handles(length: int) -> None:
    with pytest.raises(InvalidHandle, match=f"24 bytes long, these are {length}") as caught:
        Handle.from_bytes(bytes(length))
    assert isinstance(caught.value, StaleHandle)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ShmpoolError)


def test_the_length_that_counts_is_in_bytes() -> None:
    with pytest.raises(InvalidHandle):
        Handle.from_bytes(memoryview(bytes(24 * 8)).cast("Q"))
    assert Handle.from_bytes(memoryview(bytes(make())).cast("Q")) == make()


@given(st.binary(min_size=24, max_size=24))
def test_any_24_bytes_can_be_asked_anything(data: bytes) -> None:
    handle = Handle.from_bytes(data)
    assert 0 <= handle.row < MAX_ROWS
    assert 0 <= handle.ticket < 16
    assert 0 <= handle.nbytes <= MAX_NBYTES
    assert 0 <= handle.generation <= MAX_GENERATION
    assert str(handle) == repr(handle)


def test_repr_tells_the_parts_and_survives_a_wrong_length() -> None:
    assert repr(make()) == "<Handle row=3 generation=9 ticket=2 nbytes=1000 pool=0000000000000007>"
    assert repr(Handle(b"short")) == "Handle(b'short')"
