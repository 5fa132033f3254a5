"""The messages: a msgpack array of the kind's number and its fields, strictly checked.

Every field has a check for exact type and range; an array of another length, an unknown
kind or anything else that msgpack can express is refused with :class:`MessageError`.
docs/protocol.md is the specification for people; a test keeps it in step with this table.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, Final, NamedTuple

import msgpack

from .codes import Code
from .ledger import MAX_CHUNKS, MAX_NBYTES, MAX_ROWS, MAX_SEATS
from .sizing import MAX_TIERS, TierKind

#: Bumped with any change that an older peer cannot understand.
PROTOCOL_VERSION: Final = 1
#: Rows in one Grant, Return or Bell; more go in several messages.
MAX_ROWS_PER_MESSAGE: Final = 1024
MAX_TEXT: Final = 4096
MAX_BLOB: Final = 48 * 1024
U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1

Check = str
"""What holds for a sound value: an expression with ``{0}`` in the value's place. The checks
of a kind are compiled into one function, since every message goes through it on both sides."""


class MessageError(ValueError):
    """A message breaks the schema; the connection cannot go on."""


class Role(IntEnum):
    """What a connection is for: workers get a seat and memory, operators only ask."""

    WORKER = 0
    OPERATOR = 1


class Topic(IntEnum):
    """What a Query asks for."""

    STATS = 0
    LEASES = 1
    INVARIANTS = 2


# --- checks -----------------------------------------------------------------------------


def integer(low: int, high: int) -> Check:
    """An int (no bool) within bounds, both included."""
    return f"type({{0}}) is int and {low} <= {{0}} <= {high}"


def text(longest: int) -> Check:
    """A str of at most so many characters."""
    return f"type({{0}}) is str and len({{0}}) <= {longest}"


def row_list(value: Any) -> bool:
    """One or more ledger rows."""
    return (
        type(value) is list
        and 0 < len(value) <= MAX_ROWS_PER_MESSAGE
        and set(map(type, value)) == {int}
        and min(value) > 0
        and max(value) < MAX_ROWS
    )


def thresholds(value: Any) -> bool:
    """The medium, large and very-large threshold."""
    return type(value) is list and len(value) == 3 and all(_is_integer(nbytes, 1, MAX_NBYTES) for nbytes in value)


def tier_list(value: Any) -> bool:
    """The tiers as [kind, size, base, capacity]."""
    return (
        type(value) is list
        and 0 < len(value) <= MAX_TIERS
        and all(
            type(tier) is list
            and len(tier) == 4
            and _is_integer(tier[0], 0, max(TierKind))
            and _is_integer(tier[1], 0, MAX_NBYTES)
            and _is_integer(tier[2], 1, MAX_ROWS)
            and _is_integer(tier[3], 1, MAX_ROWS)
            for tier in value
        )
    )


def _is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


REQUEST: Final = integer(1, U32)
BOOLEAN: Final = "type({0}) is bool"
BLOB: Final = f"type({{0}}) is bytes and len({{0}}) <= {MAX_BLOB}"
ROWS: Final = "row_list({0})"
TIERS: Final = "tier_list({0})"
THRESHOLDS: Final = "thresholds({0})"

# --- client to broker ----------------------------------------------------------------------


class Hello(NamedTuple):
    """The first message. *nonce* makes a seat belong to a connection and not to a process;
    *pool_id* and *seat* are 0, or those of an earlier connection to be taken up again."""

    magic: str
    version: int
    role: int
    nonce: int
    pool_id: int
    seat: int


class Refill(NamedTuple):
    """Ask for *count* slots of a tier (or runs of *chunks* chunks). The broker grants at
    least one, or waits for one if *queue*, or refuses."""

    request: int
    tier: int
    chunks: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    queue: bool


class Direct(NamedTuple):
    """Ask for a direct segment of *nbytes* bytes."""

    request: int
    nbytes: int
    queue: bool


class Cancel(NamedTuple):
    """Ask no longer. Answered by Refusal(CANCELLED) with a text that says who holds most,
    unless the grant is already under way."""

    request: int


class Return(NamedTuple):
    """A bell: these rows say RETURNED."""

    rows: list[int]


class Bell(NamedTuple):
    """A bell: look at these publications, a ticket is done or custody has passed."""

    rows: list[int]


class Query(NamedTuple):
    """Ask for figures; answered by one or several Answers."""

    request: int
    topic: int


class Goodbye(NamedTuple):
    """The client holds nothing any more and its seat may end."""


# --- broker to client ------------------------------------------------------------------------


class Welcome(NamedTuple):
    """The answer to Hello. *seat* is 0 for operators; *resumed* says that the seat asked
    for was taken up again. *thresholds* are medium, large, very large, in bytes; times are
    in milliseconds. *checksums* asks clients to sum what they publish and verify what they
    open."""

    version: int
    pool_id: int
    epoch: int
    seat: int
    resumed: bool
    tiers: list[list[int]]
    seats: int
    thresholds: list[int]
    memory_limit: int
    lease_timeout_ms: int
    magazine_bytes: int
    magazine_idle_ms: int
    checksums: bool
    tickets: str


class Grant(NamedTuple):
    """These rows say (IDLE, your seat): slots, or heads of runs, or a direct segment."""

    request: int
    rows: list[int]


class Refusal(NamedTuple):
    """A request was refused; the connection goes on."""

    request: int
    code: int
    text: str


class Recall(NamedTuple):
    """Somebody waits: reap, and return what is idle."""


class Answer(NamedTuple):
    """A part of the answer to a Query: JSON in UTF-8, cut into parts."""

    request: int
    last: bool
    payload: bytes


class Fault(NamedTuple):
    """The connection ends, and this is why."""

    code: int
    text: str


Message = (
    Hello | Refill | Direct | Cancel | Return | Bell | Query | Goodbye
    | Welcome | Grant | Refusal | Recall | Answer | Fault
)  # fmt: skip

_CODE: Final = integer(1, max(Code))
_MILLISECONDS: Final = integer(0, U32)

#: kind number -> (class, a check for each field). The order of the fields is the wire's.
SCHEMA: Final[dict[int, tuple[Callable[..., Message], tuple[Check, ...]]]] = {
    1: (Hello, (text(16), integer(0, U32), integer(0, max(Role)), integer(0, U64), integer(0, U64),
                integer(0, MAX_SEATS))),
    2: (Refill, (REQUEST, integer(0, MAX_TIERS - 1), integer(1, MAX_CHUNKS),
                 integer(1, MAX_ROWS_PER_MESSAGE), BOOLEAN)),
    3: (Direct, (REQUEST, integer(0, MAX_NBYTES), BOOLEAN)),
    4: (Cancel, (REQUEST,)),
    5: (Return, (ROWS,)),
    6: (Bell, (ROWS,)),
    7: (Query, (REQUEST, integer(0, max(Topic)))),
    8: (Goodbye, ()),
    16: (Welcome, (integer(0, U32), integer(1, U64), integer(1, U64), integer(0, MAX_SEATS), BOOLEAN,
                   TIERS, integer(1, MAX_SEATS), THRESHOLDS, integer(1, U64), _MILLISECONDS,
                   integer(0, U64), _MILLISECONDS, BOOLEAN, text(MAX_TEXT))),
    17: (Grant, (REQUEST, ROWS)),
    18: (Refusal, (REQUEST, _CODE, text(MAX_TEXT))),
    19: (Recall, ()),
    20: (Answer, (REQUEST, BOOLEAN, BLOB)),
    21: (Fault, (_CODE, text(MAX_TEXT))),
}  # fmt: skip

KINDS: Final = {cls: kind for kind, (cls, _) in SCHEMA.items()}
FROM_CLIENT: Final = frozenset(kind for kind in SCHEMA if kind < 16)
FROM_BROKER: Final = frozenset(SCHEMA) - FROM_CLIENT
HELLO_MAGIC: Final = "shmpool"

_FAILURES: Final = (
    ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.exceptions.UnpackException,
)  # fmt: skip


def encode(message: Message) -> bytes:
    """The message's body, without framing. It is checked like a peer's would be, so that
    a mistake shows on the side that made it."""
    kind, values = KINDS[type(message)], list(message)
    if not _checker(kind)(*values):  # a code or a topic may have come as its enumeration's
        values = [int(value) if isinstance(value, IntEnum) else value for value in message]
        if not _checker(kind)(*values):
            raise _fault(kind, values)
    try:
        return msgpack.packb([kind, *values])
    except UnicodeEncodeError as error:
        raise MessageError(f"{type(message).__name__} has a text that is no Unicode: {error}") from error


def decode(body: bytes, allowed: frozenset[int]) -> Message:
    """The message in *body*, of one of the *allowed* kinds. Raises MessageError, which says
    what was expected, and nothing else, for any bytes whatever."""
    try:
        fields = msgpack.unpackb(
            body, raw=False, strict_map_key=True, max_str_len=MAX_TEXT * 4, max_bin_len=MAX_BLOB,
            max_array_len=MAX_ROWS_PER_MESSAGE, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except _FAILURES as error:
        raise MessageError(f"not a msgpack message: {error or type(error).__name__}") from error
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise MessageError("a message is an array that begins with its kind")
    kind, values = fields[0], fields[1:]
    if kind not in allowed:
        raise MessageError(f"kind {kind} is not one that this side accepts")
    cls, checks = SCHEMA[kind]
    if len(values) != len(checks):
        raise MessageError(f"{_name(cls)} has {len(checks)} fields, this one has {len(values)}")
    if not _checker(kind)(*values):
        raise _fault(kind, values)
    return cls(*values)


@cache
def _checker(kind: int) -> Callable[..., bool]:
    """Whether the values of a message's fields are sound."""
    return _compiled(SCHEMA[kind][1])


@cache
def _compiled(checks: tuple[Check, ...]) -> Callable[..., bool]:
    names = [f"field_{at}" for at in range(len(checks))]
    conditions = " and ".join(check.format(name) for check, name in zip(checks, names, strict=True))
    is_sound: Callable[..., bool] = eval(f"lambda {', '.join(names)}: {conditions or True}", globals())
    return is_sound


def _fault(kind: int, values: list[Any]) -> MessageError:
    """Says which of the values is not sound."""
    cls, checks = SCHEMA[kind]
    index = next(at for at, check in enumerate(checks) if not _compiled((check,))(values[at]))
    field = cls._fields[index]  # type: ignore[attr-defined]
    return MessageError(f"{_name(cls)}.{field} may not be {_shown(values[index])}")


def _name(cls: Callable[..., Message]) -> str:
    return getattr(cls, "__name__", "a message")


def _shown(value: Any) -> str:
    """A peer's value for an error text: short, and never deep."""
    return f"{value!r:.80}" if type(value) in (int, bool, str, bytes) else f"a {type(value).__name__}"
