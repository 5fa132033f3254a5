"""The messages: a msgpack array of the kind's number and its fields, strictly checked.

Every field has a check for exact type and range; an array of another length, an unknown
kind or anything else that msgpack can express is refused with :class:`MessageError`.
docs/protocol.md is the specification for people; a test keeps it in step with this table.
"""

from __future__ import annotations

from enum import IntEnum

import msgpack

from .codes import Code
from .frozen import NamedTuple
from .ledger import MAX_CHUNKS, MAX_GENERATION, MAX_NBYTES, MAX_ROWS, MAX_SEATS, MAX_TICKETS, NAME_BYTES
from .sizing import MAX_TIERS, TierKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    Check = Callable[[Any], bool]

#: Bumped with any change that an older peer cannot understand. Hello and Fault never change
#: their shape: whatever the versions, a refusal can be told and understood.
PROTOCOL_VERSION: Final = 2
#: Rows in one Grant, Return or Bell; more go in several messages.
MAX_ROWS_PER_MESSAGE: Final = 1024
MAX_TEXT: Final = 4096
MAX_SETTINGS: Final = 64
#: Rows in one Inquire or Account, and characters of what is known of one.
MAX_INQUIRED: Final = 64
MAX_SITE: Final = 240
MAX_BLOB: Final = 48 * 1024
U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1


class MessageError(ValueError):
    """A message breaks the schema; the connection cannot go on."""


class Role(IntEnum):
    """What a connection is for: workers get a seat and memory, operators only ask."""

    WORKER = 0
    OPERATOR = 1


class Setting(IntEnum):
    """What a client needs of the broker's configuration, by number: a Welcome says all of it,
    Settings what has changed. Sizes in bytes, times in milliseconds. A client ignores numbers
    that it does not know."""

    MEMORY_LIMIT = 1
    LEASE_TIMEOUT_MS = 2
    MAGAZINE_BYTES = 3
    MAGAZINE_IDLE_MS = 4
    MEDIUM_OBJECT_THRESHOLD = 5
    LARGE_OBJECT_THRESHOLD = 6
    VERY_LARGE_OBJECT_THRESHOLD = 7
    #: 0: every lease is direct.
    IS_POOLING = 8
    #: 0: large objects are direct.
    IS_CHUNKING = 9
    #: What a stream of unknown size leases first.
    DEFAULT_BUFFER_SIZE = 10
    #: 1: every lease is timed.
    DETAILED_METRICS = 11
    #: 1: the host is short of memory; a lease that may be direct is to be.
    PREFERS_DIRECT = 12
    #: Slots that the first refill of a size asks for; each next one twice as many, up to the other.
    MAGAZINE_FIRST_BATCH = 13
    MAGAZINE_MAX_BATCH = 14


class Purpose(IntEnum):
    """What a Find is for."""

    #: To hold what has the name.
    OPEN = 0
    #: That, or to make it: one seat at a time has the turn.
    MAKE = 1
    #: To make it, if nobody has or does.
    CLAIM = 2


class Topic(IntEnum):
    """What a Query asks for."""

    STATS = 0
    LEASES = 1
    INVARIANTS = 2
    BUFFERS = 3
    LEAKS = 4
    NAMES = 5


# --- checks -----------------------------------------------------------------------------


def integer(low: int, high: int) -> Check:
    """An int (no bool) within bounds, both included."""
    return lambda value: type(value) is int and low <= value <= high


def text(longest: int) -> Check:
    """A str of at most so many characters."""
    return lambda value: type(value) is str and len(value) <= longest


def blob(value: Any) -> bool:
    """Bytes, at most MAX_BLOB."""
    return type(value) is bytes and len(value) <= MAX_BLOB


def boolean(value: Any) -> bool:
    """A bool."""
    return type(value) is bool


def row_list(value: Any) -> bool:
    """One or more ledger rows."""
    return (
        type(value) is list
        and 0 < len(value) <= MAX_ROWS_PER_MESSAGE
        and set(map(type, value)) == {int}
        and min(value) > 0
        and max(value) < MAX_ROWS
    )


def hold_list(value: Any) -> bool:
    """Holds as [number, row, generation]; a client may have none."""
    row, generation = integer(1, MAX_ROWS - 1), integer(0, MAX_GENERATION)
    return (
        type(value) is list
        and len(value) <= MAX_ROWS_PER_MESSAGE
        and all(
            type(hold) is list and len(hold) == 3 and REQUEST(hold[0]) and row(hold[1]) and generation(hold[2])
            for hold in value
        )
    )


def number_list(value: Any) -> bool:
    """One or more numbers of holds or turns."""
    return type(value) is list and 0 < len(value) <= MAX_ROWS_PER_MESSAGE and all(map(REQUEST, value))


def name(value: Any) -> bool:
    """A name of a shared publication: 1 to 96 bytes of UTF-8."""
    try:
        return type(value) is str and 0 < len(value.encode()) <= NAME_BYTES
    except UnicodeEncodeError:
        return False


def few_rows(value: Any) -> bool:
    """One or more ledger rows, `MAX_INQUIRED` at most."""
    return row_list(value) and len(value) <= MAX_INQUIRED


def account_list(value: Any) -> bool:
    """What is known of some rows, as [row, is_view, site]."""
    row, site = integer(1, MAX_ROWS - 1), text(MAX_SITE)
    return (
        type(value) is list
        and 0 < len(value) <= MAX_INQUIRED
        and all(
            type(one) is list and len(one) == 3 and row(one[0]) and boolean(one[1]) and site(one[2]) for one in value
        )
    )


def setting_list(value: Any) -> bool:
    """Settings as [number, value], none of them twice."""
    number, amount = integer(1, MAX_SETTINGS), integer(0, U64)
    return (
        type(value) is list
        and 0 < len(value) <= MAX_SETTINGS
        and all(type(pair) is list and len(pair) == 2 and number(pair[0]) and amount(pair[1]) for pair in value)
        and len({pair[0] for pair in value}) == len(value)
    )


def all_settings(value: Any) -> bool:
    """Settings, and none of those missing that every broker of this version says."""
    return setting_list(value) and {pair[0] for pair in value} >= set(Setting)


def file_id(value: Any) -> bool:
    """A file's [device, inode]."""
    return type(value) is list and len(value) == 2 and all(map(integer(0, U64), value))


def tier_list(value: Any) -> bool:
    """The tiers as [kind, size, base, capacity]."""
    kinds, nbytes, rows = integer(0, max(TierKind)), integer(0, MAX_NBYTES), integer(1, MAX_ROWS)
    return (
        type(value) is list
        and 0 < len(value) <= MAX_TIERS
        and all(
            type(tier) is list
            and len(tier) == 4
            and kinds(tier[0])
            and nbytes(tier[1])
            and rows(tier[2])
            and rows(tier[3])
            for tier in value
        )
    )


REQUEST: Final = integer(1, U32)

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
    """Ask no longer. Answered by Refusal(CANCELLED) with a text that says who keeps most,
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


class Take(NamedTuple):
    """For a client that cannot swap words, in a pool whose tickets are taken so: take this ticket for me, if its
    cell says *word*, or close it (*closes*). Answered by Taken, but for what is to be closed."""

    request: int
    row: int
    cell: int
    word: int
    closes: bool


class Account(NamedTuple):
    """The answer to Inquire, which nobody waits for: as [row, is_view, site] whether only views keep
    it, and which line of code leased or opened it, empty when that was not noted."""

    buffers: list[list[Any]]
    is_reader: bool


class Goodbye(NamedTuple):
    """The client holds nothing any more and its seat may end."""


class Share(NamedTuple):
    """This row is a shared publication now, in the broker's custody: hold it for me. *turn* is the
    number of the Find whose turn it ends, 0 for one without a name; *ttl_ms* when it is to be dropped,
    0 for never. Answered by Held."""

    request: int
    row: int
    turn: int
    ttl_ms: int


class Hold(NamedTuple):
    """Hold the shared publication of this row and generation for me. Answered by Held."""

    request: int
    row: int
    generation: int


class LetGo(NamedTuple):
    """These holds, and turns, by the numbers of their requests, are over."""

    numbers: list[int]


class Holds(NamedTuple):
    """After a connection was lost: all that this client holds, in one or several messages. What it
    held besides is let go of when the *last* has come."""

    holds: list[list[int]]
    last: bool


class Find(NamedTuple):
    """Hold the shared publication of this name for me, or let me make it: see `Purpose`. Answered by
    Held or Turn; *queue* waits for either."""

    request: int
    name: str
    purpose: int
    queue: bool


class Drop(NamedTuple):
    """Take the name away; nothing keeps what had it but who holds it. Answered by Dropped."""

    request: int
    name: str


# --- broker to client ------------------------------------------------------------------------


class Welcome(NamedTuple):
    """The answer to Hello. *seat* is 0 for operators; *resumed* says that the seat asked
    for was taken up again. *properties* are the pool's, as in its header; *tickets_file* and
    *seats_file* are device and inode of the files that lie beside the socket."""

    version: int
    pool_id: int
    epoch: int
    seat: int
    resumed: bool
    tiers: list[list[int]]
    seats: int
    properties: int
    tickets_file: list[int]
    seats_file: list[int]
    settings: list[list[int]]

    def setting(self, number: Setting) -> int:
        """The value of a setting."""
        return next(value for key, value in self.settings if key == number)


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


class Settings(NamedTuple):
    """Settings that have changed, as in the Welcome; the others stay as they were."""

    settings: list[list[int]]


class Inquire(NamedTuple):
    """These buffers seem to be leaked: what does their client know? As who leased them, or
    *is_reader*, who has opened them."""

    rows: list[int]
    is_reader: bool


class Taken(NamedTuple):
    """The broker has looked at that ticket: whether it is this client's now, its cell says."""

    request: int


class Held(NamedTuple):
    """The shared publication that *word*, its grant word, names is held for this client until it lets
    go of *request*."""

    request: int
    row: int
    word: int
    nbytes: int
    name: str


class Turn(NamedTuple):
    """Nobody has that name: it is this client's to make, until it shares it or lets go of *request*."""

    request: int


class Dropped(NamedTuple):
    """The name is free."""

    request: int


class Fault(NamedTuple):
    """The connection ends, and this is why."""

    code: int
    text: str


Message = (
    Hello | Refill | Direct | Cancel | Return | Bell | Query | Goodbye | Take | Account
    | Share | Hold | LetGo | Holds | Find | Drop
    | Welcome | Grant | Refusal | Recall | Answer | Fault | Settings | Taken | Inquire | Held | Turn | Dropped
)  # fmt: skip

_CODE: Final = integer(1, max(Code))

#: kind number -> (class, a check for each field). The order of the fields is the wire's.
SCHEMA: Final[dict[int, tuple[Callable[..., Message], tuple[Check, ...]]]] = {
    1: (Hello, (text(16), integer(0, U32), integer(0, max(Role)), integer(0, U64), integer(0, U64),
                integer(0, MAX_SEATS))),
    2: (Refill, (REQUEST, integer(0, MAX_TIERS - 1), integer(1, MAX_CHUNKS),
                 integer(1, MAX_ROWS_PER_MESSAGE), boolean)),
    3: (Direct, (REQUEST, integer(0, MAX_NBYTES), boolean)),
    4: (Cancel, (REQUEST,)),
    5: (Return, (row_list,)),
    6: (Bell, (row_list,)),
    7: (Query, (REQUEST, integer(0, max(Topic)))),
    8: (Goodbye, ()),
    9: (Take, (integer(0, U32), integer(1, MAX_ROWS - 1), integer(0, MAX_TICKETS - 1), integer(0, U64), boolean)),
    10: (Account, (account_list, boolean)),
    16: (Welcome, (integer(0, U32), integer(1, U64), integer(1, U64), integer(0, MAX_SEATS), boolean,
                   tier_list, integer(1, MAX_SEATS), integer(0, U64), file_id, file_id, all_settings)),
    17: (Grant, (REQUEST, row_list)),
    18: (Refusal, (REQUEST, _CODE, text(MAX_TEXT))),
    19: (Recall, ()),
    20: (Answer, (REQUEST, boolean, blob)),
    21: (Fault, (_CODE, text(MAX_TEXT))),
    22: (Settings, (setting_list,)),
    23: (Taken, (REQUEST,)),
    24: (Inquire, (few_rows, boolean)),
    32: (Share, (REQUEST, integer(1, MAX_ROWS - 1), integer(0, U32), integer(0, U64))),
    33: (Hold, (REQUEST, integer(1, MAX_ROWS - 1), integer(0, MAX_GENERATION))),
    34: (LetGo, (number_list,)),
    35: (Holds, (hold_list, boolean)),
    36: (Find, (REQUEST, name, integer(0, max(Purpose)), boolean)),
    37: (Drop, (REQUEST, name)),
    48: (Held, (REQUEST, integer(1, MAX_ROWS - 1), integer(0, U64), integer(0, MAX_NBYTES), text(NAME_BYTES))),
    49: (Turn, (REQUEST,)),
    50: (Dropped, (REQUEST,)),
}  # fmt: skip

KINDS: Final = {cls: kind for kind, (cls, _) in SCHEMA.items()}
#: Bit 4 of a kind's number says which side sends it.
FROM_CLIENT: Final = frozenset(kind for kind in SCHEMA if not kind & 16)
FROM_BROKER: Final = frozenset(SCHEMA) - FROM_CLIENT
HELLO_MAGIC: Final = "shmpool"

_FAILURES: Final = (
    ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.exceptions.UnpackException,
)  # fmt: skip


def encode(message: Message) -> bytes:
    """The message's body, without framing. It is checked like a peer's would be, so that
    a mistake shows on the side that made it."""
    kind = KINDS[type(message)]
    values = [int(value) if isinstance(value, IntEnum) else value for value in message]
    _check(kind, values)
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
    _check(kind, values)
    return SCHEMA[kind][0](*values)


def _check(kind: int, values: list[Any]) -> None:
    cls, checks = SCHEMA[kind]
    if len(values) != len(checks):
        raise MessageError(f"{_name(cls)} has {len(checks)} fields, this one has {len(values)}")
    for check, value in zip(checks, values):  # noqa: B905  # of one length
        if not check(value):
            index = next(at for at, is_sound in enumerate(checks) if not is_sound(values[at]))
            field = cls._fields[index]  # type: ignore[attr-defined]
            raise MessageError(f"{_name(cls)}.{field} may not be {_shown(value)}")


def _name(cls: Callable[..., Message]) -> str:
    return getattr(cls, "__name__", "a message")


def _shown(value: Any) -> str:
    """A peer's value for an error text: short, and never deep."""
    return f"{value!r:.80}" if type(value) in (int, bool, str, bytes) else f"a {type(value).__name__}"
