"""Messages: what is well made comes back, everything else is a MessageError and nothing
worse. What broker and client do with them is tested there."""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.protocol import messages as m
from shmpool.protocol.codes import Code
from shmpool.protocol.framing import MAX_FRAME, encode_frame
from shmpool.protocol.ledger import MAX_CHUNKS, MAX_GENERATION, MAX_NBYTES, MAX_ROWS, MAX_SEATS
from shmpool.protocol.sizing import DEFAULT_SIZING, MAX_TIERS, MIB, make_tiers

ANY = m.FROM_CLIENT | m.FROM_BROKER

u32 = st.integers(0, m.U32)
u64 = st.integers(0, m.U64)
requests = st.integers(1, m.U32)
row_lists = st.lists(st.integers(1, MAX_ROWS - 1), min_size=1, max_size=40)
rows = st.integers(1, MAX_ROWS - 1)
generations = st.integers(0, MAX_GENERATION)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24)
codes = st.sampled_from([int(code) for code in Code])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
seats = st.integers(0, MAX_SEATS)
tiers = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, MAX_NBYTES), st.integers(1, MAX_ROWS), st.integers(1, MAX_ROWS)).map(
        list
    ),
    min_size=1,
    max_size=MAX_TIERS,
)
files = st.tuples(u64, u64).map(list)
settings = st.lists(st.tuples(st.integers(1, 40), u64).map(list), min_size=1, max_size=40, unique_by=lambda s: s[0])

MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    m.Hello: st.builds(m.Hello, st.text("shmpol", max_size=16), u32, st.integers(0, 1), u64, u64, seats),
    m.Refill: st.builds(
        m.Refill,
        requests,
        st.integers(0, MAX_TIERS - 1),
        st.integers(1, MAX_CHUNKS),
        st.integers(1, m.MAX_ROWS_PER_MESSAGE),
        st.booleans(),
    ),
    m.Direct: st.builds(m.Direct, requests, st.integers(0, MAX_NBYTES), st.booleans()),
    m.Cancel: st.builds(m.Cancel, requests),
    m.Return: st.builds(m.Return, row_lists),
    m.Bell: st.builds(m.Bell, row_lists),
    m.Query: st.builds(m.Query, requests, st.integers(0, 2)),
    m.Goodbye: st.just(m.Goodbye()),
    m.Take: st.builds(m.Take, u32, rows, st.integers(0, 12), u64, st.booleans()),
    m.Taken: st.builds(m.Taken, requests),
    m.Account: st.builds(
        m.Account,
        st.lists(st.tuples(st.integers(1, MAX_ROWS - 1), st.booleans(), texts).map(list), min_size=1, max_size=40),
        st.booleans(),
    ),
    m.Inquire: st.builds(m.Inquire, row_lists, st.booleans()),
    m.Welcome: st.builds(
        m.Welcome,
        u32,
        st.integers(1, m.U64),
        st.integers(1, m.U64),
        seats,
        st.booleans(),
        tiers,
        st.integers(1, MAX_SEATS),
        u64,
        files,
        files,
        settings.map(
            lambda some: [[int(key), 1] for key in m.Setting] + [[max(m.Setting) + key, value] for key, value in some]
        ),
    ),
    m.Grant: st.builds(m.Grant, requests, row_lists),
    m.Refusal: st.builds(m.Refusal, requests, codes, texts),
    m.Recall: st.just(m.Recall()),
    m.Answer: st.builds(m.Answer, requests, st.booleans(), st.binary(max_size=500)),
    m.Fault: st.builds(m.Fault, codes, texts),
    m.Settings: st.builds(m.Settings, settings),
    m.Share: st.builds(m.Share, requests, rows, u32, u64),
    m.Hold: st.builds(m.Hold, requests, rows, generations),
    m.LetGo: st.builds(m.LetGo, st.lists(requests, min_size=1, max_size=40)),
    m.Holds: st.builds(m.Holds, st.lists(st.tuples(requests, rows, generations).map(list), max_size=40), st.booleans()),
    m.Find: st.builds(m.Find, requests, names, st.integers(0, 2), st.booleans()),
    m.Drop: st.builds(m.Drop, requests, names),
    m.Held: st.builds(m.Held, requests, rows, u64, st.integers(0, MAX_NBYTES), names),
    m.Turn: st.builds(m.Turn, requests),
    m.Dropped: st.builds(m.Dropped, requests),
}
any_message = st.one_of(*MESSAGES.values())


def test_every_kind_has_a_sample_here() -> None:
    assert set(MESSAGES) == set(m.KINDS)


def test_every_field_has_one_check() -> None:
    for cls, checks in m.SCHEMA.values():
        assert len(checks) == len(cls._fields), cls  # type: ignore[attr-defined]


def test_numbers_are_pinned_because_they_are_on_the_wire() -> None:
    assert {cls.__name__: kind for cls, kind in m.KINDS.items()} == {  # type: ignore[attr-defined]
        "Hello": 1,
        "Refill": 2,
        "Direct": 3,
        "Cancel": 4,
        "Return": 5,
        "Bell": 6,
        "Query": 7,
        "Goodbye": 8,
        "Take": 9,
        "Account": 10,
        "Welcome": 16,
        "Grant": 17,
        "Refusal": 18,
        "Recall": 19,
        "Answer": 20,
        "Fault": 21,
        "Settings": 22,
        "Taken": 23,
        "Inquire": 24,
        "Share": 32,
        "Hold": 33,
        "LetGo": 34,
        "Holds": 35,
        "Find": 36,
        "Drop": 37,
        "Held": 48,
        "Turn": 49,
        "Dropped": 50,
    }
    assert not m.FROM_CLIENT & m.FROM_BROKER


# --- round trips --------------------------------------------------------------------------


@given(any_message)
def test_a_message_comes_back_as_it_was(message: m.Message) -> None:
    body = m.encode(message)
    again = m.decode(body, ANY)
    assert type(again) is type(message)
    assert again == message


@given(any_message)
def test_each_side_accepts_only_what_the_other_may_send(message: m.Message) -> None:
    mine, other = m.FROM_CLIENT, m.FROM_BROKER
    if m.KINDS[type(message)] in other:
        mine, other = other, mine
    assert m.decode(m.encode(message), mine) == message
    with pytest.raises(m.MessageError, match="not one that this side accepts"):
        m.decode(m.encode(message), other)


def test_the_largest_messages_fit_a_frame() -> None:
    rows = [MAX_ROWS - 1] * m.MAX_ROWS_PER_MESSAGE
    text = "\U0001f40d" * m.MAX_TEXT
    tier_list = [[2, MAX_NBYTES, MAX_ROWS, MAX_ROWS]] * MAX_TIERS
    pairs = [[number, m.U64] for number in range(1, m.MAX_SETTINGS + 1)]
    welcome = m.Welcome(1, m.U64, m.U64, 1, True, tier_list, 1, m.U64, [m.U64] * 2, [m.U64] * 2, pairs)
    largest = [
        m.Return(rows),
        m.Grant(1, rows),
        m.Answer(1, True, bytes(m.MAX_BLOB)),
        m.Fault(1, text),
        welcome,
        m.Settings(pairs),
    ]
    for message in largest:
        body = m.encode(message)  # type: ignore[arg-type]
        assert len(encode_frame(body)) <= MAX_FRAME + 4
        assert m.decode(body, ANY) == message


def test_the_default_tiers_pass_the_welcomes_schema() -> None:
    assert m.tier_list([t.to_wire() for t in make_tiers(256 * MIB, DEFAULT_SIZING)])


# --- what is refused ----------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_a_message_or_a_message_error(body: bytes) -> None:
    try:
        message = m.decode(body, ANY)
    except m.MessageError:
        return
    assert m.decode(m.encode(message), ANY) == message


@given(any_message, st.data())
def test_a_damaged_message_gives_a_message_or_a_message_error(message: m.Message, data: st.DataObject) -> None:
    body = bytearray(m.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        m.decode(bytes(body), ANY)
    except m.MessageError:
        pass


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(m.SCHEMA)), st.lists(anything, max_size=14))
def test_wrong_fields_give_a_message_error(kind: int, fields: list[Any]) -> None:
    try:
        message = m.decode(msgpack.packb([kind, *fields]), ANY)
    except m.MessageError:
        return
    assert list(message) == fields


@pytest.mark.parametrize(
    "fields",
    [
        [],
        None,
        4,
        {},
        "Hello",
        [None],
        [[4], 1],
        [4.0, 1],
        ["4", 1],
        [True, "shmpool", 1, 0, 0, 0, 0],
    ],
)
def test_what_does_not_begin_with_a_kind_is_refused(fields: Any) -> None:
    with pytest.raises(m.MessageError):
        m.decode(msgpack.packb(fields), ANY)


@pytest.mark.parametrize("kind", [-1, 0, 11, 15, 25, 255, 2**32, 2**64 - 1])
def test_unknown_kinds_are_refused(kind: int) -> None:
    with pytest.raises(m.MessageError, match=f"kind {kind} "):
        m.decode(msgpack.packb([kind, 1]), ANY)


@pytest.mark.parametrize("fields", [[4], [4, 1, 1], [8, 1], [19, None], [5], [16]])
def test_wrong_arity_is_refused(fields: list[int]) -> None:
    with pytest.raises(m.MessageError, match="fields, this one has"):
        m.decode(msgpack.packb(fields), ANY)


@pytest.mark.parametrize(
    "fields",
    [
        [4, True],  # bools are no ints
        [4, 1.0],
        [4, "1"],
        [4, 0],
        [4, -1],
        [4, 2**32],
        [3, 1, True, False],
        [3, 1, 2**40, False],
        [3, 1, -1, False],
        [3, 1, 1, 0],  # and ints are no bools
        [3, 1, 1, None],
        [2, 1, MAX_TIERS, 1, 1, False],
        [2, 1, 0, 0, 1, False],
        [2, 1, 0, 1, 0, False],
        [2, 1, 0, 1, 1025, False],
        [5, []],
        [5, [0]],
        [5, [MAX_ROWS]],
        [5, [True]],
        [5, [1, "2"]],
        [5, [[1]]],
        [5, {}],
        [5, "12"],
        [5, b"12"],
        [7, 1, 6],
        [10, [[0, True, ""]], False],
        [10, [[1, 1, ""]], False],
        [10, [[1, True, "x" * 241]], False],
        [10, [], False],
        [24, [1] * 65, False],
        [1, b"shmpool", 1, 0, 0, 0, 0],
        [1, "x" * 17, 1, 0, 0, 0, 0],
        [1, "shmpool", 1, 2, 0, 0, 0],
        [1, "shmpool", 1, 0, 0, 0, 65536],
        [18, 1, 0, ""],
        [18, 1, 15, ""],
        [34, []],
        [34, [0]],
        [35, [[1, 1]], True],
        [35, [[1, 0, 1]], True],
        [35, [[1, 1, 2**40]], True],
        [36, 1, "", 0, False],
        [36, 1, "x" * 97, 0, False],
        [36, 1, "ä" * 49, 0, False],
        [36, 1, b"x", 0, False],
        [36, 1, "x", 3, False],
        [37, 1, 5],
        [20, 1, False, "text"],
        [21, 1, b"bytes"],
    ],
)
def test_values_of_another_type_or_range_are_refused(fields: list[Any]) -> None:
    with pytest.raises(m.MessageError):
        m.decode(msgpack.packb(fields), ANY)


@pytest.mark.parametrize("file", [[], [1], [1, 2, 3], [1, -1], [1, 2**64], [True, 2], [1, "2"], (1, 2), {}, None])
def test_bad_files_are_refused(file: Any) -> None:
    assert not m.file_id(file)
    assert m.file_id([1, 2])


@pytest.mark.parametrize(
    "tier", [[3, 4096, 1, 1], [0, -1, 1, 1], [0, 4096, 0, 1], [0, 4096, 1], [0, 4096, 1, 1, 1], 4, []]
)
def test_bad_tiers_are_refused(tier: Any) -> None:
    assert not m.tier_list([tier])
    assert not m.tier_list([])
    assert not m.tier_list([[0, 4096, 1, 1]] * (MAX_TIERS + 1))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="never-used byte"),
        pytest.param(msgpack.packb([4, 1]) + b"\x00", id="bytes behind the message"),
        pytest.param(msgpack.packb([4, 1])[:-1], id="truncated"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="huge array announced"),
        pytest.param(b"\x92\x05\xdd\xff\xff\xff\xff", id="huge inner array announced"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="huge map announced"),
        pytest.param(b"\x93\x15\x01\xdb\xff\xff\xff\xff", id="huge text announced"),
        pytest.param(b"\x94\x14\x01\xc3\xc6\xff\xff\xff\xff", id="huge blob announced"),
        pytest.param(b"\x92\x04\xc9\xff\xff\xff\xff\x01", id="huge extension announced"),
        pytest.param(b"\x92\x04\xd6\xff\x00\x00\x00\x00", id="timestamp"),
        pytest.param(b"\x92\x04\xc7\x00\x01", id="empty extension"),
        pytest.param(b"\x92\x04\x81\x01\x01", id="map"),
        pytest.param(b"\x93\x15\x01\xa2\xff\xff", id="text that is not UTF-8"),
        pytest.param(b"\x93\x15\x01\xa3\xed\xb3\xbf", id="surrogate in UTF-8"),
        pytest.param(b"\xdc\x04\x00" * 21_000, id="a thousand arrays of a thousand"),
        pytest.param(msgpack.packb([21, 1, "x" * (m.MAX_TEXT + 1)]), id="text too long"),
        pytest.param(msgpack.packb([20, 1, True, bytes(m.MAX_BLOB + 1)]), id="blob too long"),
    ],
)
def test_hostile_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(m.MessageError):
        m.decode(body, ANY)


@pytest.mark.parametrize(
    "depth", [1, 100, 500, 900, 1000, 1010, 1015, 1018, 1020, 1021, 1022, 1023, 1024, 5000, 60_000]
)
def test_deep_nesting_is_refused(depth: int) -> None:
    """Also where msgpack still decodes it and only Python's recursion limit objects."""
    with pytest.raises(m.MessageError):
        m.decode(b"\x92\x04" + b"\x91" * depth + b"\x01", ANY)


def test_deep_nesting_is_refused_with_little_stack_left() -> None:
    def below(frames: int) -> None:
        if frames:
            below(frames - 1)
        else:
            with pytest.raises(m.MessageError):
                m.decode(b"\x92\x04" + b"\x91" * 1000 + b"\x01", ANY)

    below(sys.getrecursionlimit() // 2)


def test_an_error_never_repeats_a_long_value() -> None:
    with pytest.raises(m.MessageError) as caught:
        m.decode(msgpack.packb([21, 99, "x" * 4000]), ANY)
    assert len(str(caught.value)) < 200
    with pytest.raises(m.MessageError) as caught:
        m.decode(msgpack.packb([21, "y" * 4000, "x"]), ANY)
    assert len(str(caught.value)) < 200


# --- the sender's side ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.Cancel(0),
        m.Cancel(True),
        m.Return([]),
        m.Return([0]),
        m.Direct(1, -1, False),
        m.Fault(0, ""),
        m.Fault(1, "x" * (m.MAX_TEXT + 1)),
        m.Fault(1, "\udcff"),
        m.Answer(1, True, bytes(m.MAX_BLOB + 1)),
    ],
)
def test_a_mistake_shows_on_the_side_that_made_it(message: m.Message) -> None:
    with pytest.raises(m.MessageError):
        m.encode(message)
