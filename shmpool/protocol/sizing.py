"""Sizes: the category of an object, the strategy for it, the tiers of a pool.

Everything here is arithmetic on a :class:`Sizing`, the part of the broker's
configuration that clients need too (they get it in the hello).
"""

from __future__ import annotations

from enum import Enum, IntEnum

from ..errors import ConfigError, InvalidSize, PoolingRefused
from .frozen import Frozen
from .ledger import MAX_CHUNKS, MAX_NBYTES, MAX_ROWS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

KIB: Final = 1024
MIB: Final = 1024 * KIB
#: Slots are whole pages, so that each can be reserved, cooled and mapped by itself.
PAGE: Final = 4096
PAGE_SHIFT: Final = 12
MAX_TIER_ROWS: Final = 16384
DIRECT_ROWS: Final = 4096
MAX_TIERS: Final = 32
#: Of bytes, for people.
_MOST_SHOWN: Final = 1 << 80


class SizeCategory(Enum):
    """How large an object is, by the thresholds of the configuration."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"
    VERY_LARGE = "very_large"


class Strategy(Enum):
    """Where a lease's memory comes from. ADAPTIVE chooses by size."""

    POOLED = "pooled"
    CHUNKED = "chunked"
    DIRECT = "direct"
    ADAPTIVE = "adaptive"


if TYPE_CHECKING:
    #: A strategy, or its name.
    StrategyLike = Strategy | Literal["pooled", "chunked", "direct", "adaptive"]


_STRATEGIES: Final[dict[object, Strategy]] = {key: one for one in Strategy for key in (one, one.value)}


def as_strategy(strategy: StrategyLike) -> Strategy:
    """The strategy that is meant. Raises ValueError for what is none."""
    found = _STRATEGIES.get(strategy) if isinstance(strategy, str | Strategy) else None
    if found is None:
        names = ", ".join(f"{one.value!r}" for one in Strategy)
        raise ValueError(f"a strategy is a shmpool.Strategy or one of {names}, not {strategy!r}")
    return found


class TierKind(IntEnum):
    """What a tier's slots are used for, and so the strategy of its leases."""

    POOLED = 0
    CHUNK = 1
    DIRECT = 2


STRATEGY_OF_KIND: Final = (Strategy.POOLED, Strategy.CHUNKED, Strategy.DIRECT)


class Tier(Frozen):
    """All slots of one size; *size* is in bytes (0 for direct segments, whose rows have
    no data), *base* the ledger row of its first slot, *capacity* its number of slots."""

    __slots__ = ("base", "capacity", "index", "kind", "size")

    index: int
    kind: TierKind
    size: int
    base: int
    capacity: int

    def __init__(self, index: int, kind: TierKind, size: int, base: int, capacity: int) -> None:
        self._set(index=index, kind=kind, size=size, base=base, capacity=capacity)

    @property
    def end(self) -> int:
        """The row behind its last."""
        return self.base + self.capacity

    def to_wire(self) -> list[int]:
        """As the Welcome message has it, and the header."""
        return [int(self.kind), self.size, self.base, self.capacity]

    def label(self) -> str:
        """How people see it: ``pooled 64 KiB``."""
        name = self.kind.name.lower()
        return name if self.kind is TierKind.DIRECT else f"{name} {format_bytes(self.size)}"


class Sizing(Frozen):
    """Thresholds and slot sizes, in bytes. An object of exactly a threshold belongs to
    the category that the threshold opens. Raises `ConfigError` when made inconsistent."""

    __slots__ = (
        "chunk_sizes", "is_pooling", "large_object_strategy", "large_object_threshold", "medium_object_threshold",
        "pooled_sizes", "very_large_object_threshold",
    )  # fmt: skip

    medium_object_threshold: int
    large_object_threshold: int
    very_large_object_threshold: int
    pooled_sizes: tuple[int, ...]
    chunk_sizes: tuple[int, ...]
    #: Where ADAPTIVE puts large objects: CHUNKED or DIRECT.
    large_object_strategy: Strategy
    #: False: every lease is DIRECT.
    is_pooling: bool

    def __init__(
        self,
        medium_object_threshold: int = 32 * KIB,
        large_object_threshold: int = 256 * KIB,
        very_large_object_threshold: int = MIB,
        pooled_sizes: tuple[int, ...] = (4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB),
        chunk_sizes: tuple[int, ...] = (64 * KIB, 128 * KIB),
        large_object_strategy: Strategy = Strategy.CHUNKED,
        is_pooling: bool = True,
    ) -> None:
        self._set(
            medium_object_threshold=medium_object_threshold,
            large_object_threshold=large_object_threshold,
            very_large_object_threshold=very_large_object_threshold,
            pooled_sizes=pooled_sizes,
            chunk_sizes=chunk_sizes,
            large_object_strategy=large_object_strategy,
            is_pooling=is_pooling,
        )
        given = (self.medium_object_threshold, self.large_object_threshold, self.very_large_object_threshold)
        if any(type(value) is not int for value in (*given, *self.pooled_sizes, *self.chunk_sizes)):
            raise ConfigError("thresholds and slot sizes are whole numbers of bytes")
        if not 0 < given[0] <= given[1] <= given[2] <= MAX_NBYTES:
            raise ConfigError(
                "thresholds must rise: medium_object_threshold <= large_object_threshold"
                f" <= very_large_object_threshold, not {_list_of(given)}"
            )
        for key, sizes in (("pooled_sizes", self.pooled_sizes), ("chunk_sizes", self.chunk_sizes)):
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"{key} must be rising sizes, at least one, not {_list_of(sizes) or 'none'}")
            if any(size <= 0 or size % PAGE or size > MAX_NBYTES for size in sizes):
                raise ConfigError(
                    f"{key} must be multiples of the page, {format_bytes(PAGE)}, below 1 TiB, not {_list_of(sizes)}"
                )
        if len(self.pooled_sizes) + len(self.chunk_sizes) >= MAX_TIERS:
            raise ConfigError(f"pooled_sizes and chunk_sizes together make at most {MAX_TIERS - 1} tiers")


DEFAULT_SIZING: Final = Sizing()


def categorize(nbytes: int, sizing: Sizing = DEFAULT_SIZING) -> SizeCategory:
    """The size category of an object of *nbytes* bytes."""
    if type(nbytes) is not int:
        check_nbytes(nbytes)
    if nbytes < sizing.medium_object_threshold:
        return SizeCategory.SMALL
    if nbytes < sizing.large_object_threshold:
        return SizeCategory.MEDIUM
    if nbytes < sizing.very_large_object_threshold:
        return SizeCategory.LARGE
    return SizeCategory.VERY_LARGE


def select_strategy(nbytes: int, config: Sizing = DEFAULT_SIZING) -> Strategy:
    """What ADAPTIVE means for an object of *nbytes* bytes: POOLED below the large
    threshold (CHUNKED where no pooled tier is large enough), CHUNKED below the very-large
    threshold (or what `large_object_strategy` says), DIRECT from there on, and for everything
    where pooling is switched off. Raises `InvalidSize` for a size that no object has, `TypeError`
    for what is not a whole number."""
    check_nbytes(nbytes)
    _check_sizing(config)
    if nbytes >= config.very_large_object_threshold or not config.is_pooling:
        return Strategy.DIRECT
    if nbytes < config.large_object_threshold and nbytes <= config.pooled_sizes[-1]:
        return Strategy.POOLED
    return config.large_object_strategy if nbytes >= config.large_object_threshold else Strategy.CHUNKED


def _check_sizing(config: Sizing) -> None:
    if not hasattr(config, "very_large_object_threshold"):
        raise TypeError(f"a Sizing is expected, as pool.sizing, not {type(config).__name__}")


def check_nbytes(nbytes: int) -> None:
    """Refuse what can be no object's size."""
    if type(nbytes) is not int:
        raise TypeError(f"nbytes must be an int, a number of bytes, not {type(nbytes).__name__}: {nbytes!r}")
    if nbytes < 0:
        raise InvalidSize(f"nbytes must not be negative, it is {nbytes}; 0 is an empty buffer")
    if nbytes > MAX_NBYTES:
        raise InvalidSize(f"nbytes is {nbytes}, the largest object is {MAX_NBYTES} bytes (2**40 - 1)")


def check_pooled(nbytes: int, sizing: Sizing) -> None:
    """Refuse POOLED where pooling would be the wrong thing."""
    check_enabled(sizing)
    if nbytes >= sizing.very_large_object_threshold:
        raise PoolingRefused(
            f"{nbytes} bytes are very large (very_large_object_threshold is"
            f" {sizing.very_large_object_threshold}): lease them DIRECT or ADAPTIVE, or raise the threshold"
        )
    if nbytes > sizing.pooled_sizes[-1]:
        raise PoolingRefused(
            f"{nbytes} bytes fit no pooled slot, the largest is {sizing.pooled_sizes[-1]} bytes:"
            " lease them CHUNKED or ADAPTIVE, or add a size to pooled_sizes (below max_buffer_size)"
        )


def check_enabled(sizing: Sizing) -> None:
    """Refuse slots and chunks where the broker lends direct segments only."""
    if not sizing.is_pooling:
        raise PoolingRefused("pooling is switched off (enabled = false): lease DIRECT or ADAPTIVE")


def chunk_sizes_for(large: int, very_large: int) -> tuple[int, ...]:
    """Chunk sizes for objects from *large* to *very_large* bytes: powers of two of which the
    smallest large object takes four and two, so that a run wastes an eighth of it on average; but no
    object takes more chunks than a lease can name."""
    smallest = max(PAGE, 1 << max(0, (large // 4).bit_length() - 1), page_round(-(-very_large // MAX_CHUNKS)))
    return (smallest, 2 * smallest)


def optimal_chunk_size(nbytes: int, config: Sizing = DEFAULT_SIZING) -> int:
    """The chunk size, in bytes, that an object of *nbytes* bytes is leased in: least waste, ties to
    fewer chunks. Raises `InvalidSize` for a size that no object has, `TypeError` for what is not a
    whole number."""
    check_nbytes(nbytes)
    _check_sizing(config)
    return min(config.chunk_sizes, key=lambda size: (max(1, -(-nbytes // size)) * size, -size))


def _list_of(sizes: tuple[int, ...]) -> str:
    return ", ".join(format_bytes(size) for size in sizes)


def make_tiers(memory_limit: int, sizing: Sizing) -> tuple[Tier, ...]:
    """The tiers of a pool: pooled, then chunk tiers, each by rising size, direct last.

    A tier has ``min(memory_limit // size, 16384)`` rows: its virtual size is bounded by
    the limit, what is warm counts towards it.
    """
    tiers: list[Tier] = []
    base = 1  # row 0 is never used: 0 in a link word means "none"
    for kind, sizes in ((TierKind.POOLED, sizing.pooled_sizes), (TierKind.CHUNK, sizing.chunk_sizes)):
        for size in sizes:
            capacity = min(memory_limit // size, MAX_TIER_ROWS)
            if capacity == 0:
                key = "pooled_sizes" if kind is TierKind.POOLED else "chunk_sizes"
                raise ConfigError(
                    f"memory_limit is {format_bytes(memory_limit)}, less than one slot of {format_bytes(size)}, which"
                    f" {key} names: raise it, or leave that size out"
                )
            tiers.append(Tier(len(tiers), kind, size, base, capacity))
            base += capacity
    tiers.append(Tier(len(tiers), TierKind.DIRECT, 0, base, DIRECT_ROWS))
    if tiers[-1].end > MAX_ROWS:
        raise ConfigError(f"these sizes make {tiers[-1].end} rows, a ledger has at most {MAX_ROWS}: use fewer tiers")
    return tuple(tiers)


def rows_of(tiers: tuple[Tier, ...]) -> int:
    """Rows of the ledger, the unused row 0 included."""
    return tiers[-1].end


def pooled_tier(nbytes: int, tiers: tuple[Tier, ...]) -> Tier | None:
    """The smallest pooled tier whose slots hold *nbytes* bytes, or None."""
    for tier in tiers:
        if tier.kind is TierKind.POOLED and nbytes <= tier.size:
            return tier
    return None


def chunk_run(nbytes: int, tiers: tuple[Tier, ...]) -> tuple[Tier, int] | None:
    """(tier, chunks) of a chunked lease: least waste, ties to fewer chunks; None when
    no chunk tier can hold so much."""
    best: tuple[int, int, Tier] | None = None
    for tier in tiers:
        if tier.kind is TierKind.CHUNK:
            chunks = max(1, -(-nbytes // tier.size))
            choice = (chunks * tier.size - nbytes, chunks, tier)
            if chunks <= min(tier.capacity, MAX_CHUNKS) and (best is None or choice < best):
                best = choice
    return None if best is None else (best[2], best[1])


def page_round(nbytes: int) -> int:
    """*nbytes* rounded up to whole pages: what a direct segment holds."""
    return -(-nbytes // PAGE) * PAGE


def format_bytes(nbytes: float) -> str:
    """For people: ``256 KiB``, ``1.5 MiB``."""
    nbytes = max(-_MOST_SHOWN, min(nbytes, _MOST_SHOWN))  # whatever somebody asked for
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(nbytes) >= 1024 and len(units) > 1:
        nbytes /= 1024
        del units[0]
    return f"{nbytes:.0f} {units[0]}" if nbytes == int(nbytes) else f"{nbytes:.1f} {units[0]}"
