"""What the stats tell: each figure with its name, counter or gauge, unit and meaning.

This is the one declaration: the broker answers under these names, `shmpool.Stats` has these
fields, the commands and exporters show them, and the tables of docs/stats.md are made from it
(``python -m shmpool.protocol.metrics``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from .figures import BUCKET_ENDS_NS, CATEGORIES, SAMPLE_EVERY, STRATEGIES


class Kind(StrEnum):
    """How a figure goes on."""

    COUNTER = "counter"
    """Since the pool was made, over restarts of brokers and deaths of clients; never less."""
    GAUGE = "gauge"
    """Of now."""
    HISTOGRAM = "histogram"
    """Counters by buckets."""
    FACT = ""
    """No figure: a name, a yes or no, a list."""


class Unit(StrEnum):
    """What a figure counts."""

    NONE = ""
    BYTES = "bytes"
    NANOSECONDS = "ns"
    SECONDS = "s"
    RATIO = "ratio"
    SLOTS = "slots"
    LEASES = "leases"
    REQUESTS = "requests"
    BUFFERS = "buffers"


class Figure(NamedTuple):
    """One figure. One *by* something is a dict of figures by the names in `KEYS`, the innermost last."""

    name: str
    kind: Kind
    unit: Unit
    help: str
    by: tuple[str, ...] = ()


#: The values of what figures are told by.
KEYS: Final = {
    "category": CATEGORIES,
    "strategy": STRATEGIES,
    "rung": ("ready", "warm", "evict", "cool", "larger", "recall", "fallback", "wait", "refused", "withdrawn"),
    "state": ("free", "idle", "leased", "published"),
    "level": ("normal", "elevated", "critical"),
    "leak": ("leased", "unread", "view", "quarantined"),
}

_COUNTER, _GAUGE, _FACT = Kind.COUNTER, Kind.GAUGE, Kind.FACT
_BYTES, _SLOTS, _LEASES, _BUFFERS, _NONE = Unit.BYTES, Unit.SLOTS, Unit.LEASES, Unit.BUFFERS, Unit.NONE
_TIMED: Final = f"of one lease in {SAMPLE_EVERY}, of each with `detailed_metrics`"

STATS: Final = (
    Figure("pool_id", _FACT, _NONE, "the pool, 16 hex digits; it stays when the broker restarts"),
    Figure("epoch", _COUNTER, _NONE, "brokers that have served this pool"),
    Figure("total_gets", _COUNTER, _LEASES, "leases"),
    Figure("total_puts", _COUNTER, _BUFFERS, "buffers given back: gets less the active ones"),
    Figure("pool_hits", _COUNTER, _LEASES, "leases of a slot or a run without a round trip to the broker"),
    Figure("pool_misses", _COUNTER, _LEASES, "those with one; direct leases are neither"),
    Figure("active_buffers", _GAUGE, _BUFFERS,
           "leases and publications not yet given back, those that only views hold included"),
    Figure("deferred_releases", _COUNTER, _BUFFERS, "releases and publications that had to wait for a view to die"),
    Figure("held_by_views", _GAUGE, _BUFFERS, "those that wait now"),
    Figure("lease_timeouts", _COUNTER, _LEASES, "leases that ended in `LeaseTimeout`; no gets"),
    Figure("ladder", _COUNTER, Unit.REQUESTS, "what served those beyond magazines, each since the broker started",
           ("rung",)),
    Figure("past_pool", _COUNTER, _NONE,
           "copies and tees that went through memory of their own, since the pool had none"),
    Figure("tickets_asked", _COUNTER, _NONE,
           "tickets that the broker took for processes that cannot (see the setting `tickets`), a round trip each"),
    Figure("operations", _COUNTER, _LEASES, "leases by category", ("category",)),
    Figure("strategies", _COUNTER, _LEASES, "leases by strategy", ("strategy",)),
    Figure("operations_by_strategy", _COUNTER, _LEASES, "leases by both", ("strategy", "category")),
    Figure("average_latency_ns", _GAUGE, Unit.NANOSECONDS, f"how long a lease took, {_TIMED}; 0: none was timed",
           ("category",)),
    Figure("p50_latency_ns", _GAUGE, Unit.NANOSECONDS, "half of these took so long at most, by the histogram",
           ("category",)),
    Figure("p99_latency_ns", _GAUGE, Unit.NANOSECONDS, "99 in 100 did", ("category",)),
    Figure("latency_histogram", Kind.HISTOGRAM, Unit.NANOSECONDS,
           f"how many of these took how long: `counts` by {len(BUCKET_ENDS_NS) + 1} buckets, and their `sum_ns`;"
           " the first ends at 256 ns, each next one is twice as long, the last has no end", ("category",)),
    Figure("memory_efficiency", _GAUGE, Unit.RATIO, "bytes asked for to bytes held, of the active buffers"),
    Figure("memory", _GAUGE, _BYTES, "below"),
    Figure("tiers", _GAUGE, _SLOTS, "a line for each tier, below"),
    Figure("clients", _GAUGE, _NONE, "a line for each seat, below"),
    Figure("shared", _GAUGE, _NONE, "shared publications, below"),
    Figure("queues", _GAUGE, _NONE, "a line for each queue, 1,000 at the most, below"),
    Figure("leaks", _GAUGE, _BUFFERS, "what `shmpool leases --leaks` tells: leased, unread or kept by a view for longer"
           " than `leak_age`, and rows that are quarantined", ("leak",)),
    Figure("alerts", _FACT, _NONE, "a sentence for each thing that an operator should look at"),
    Figure("alert_states", _FACT, _NONE, "each alert that is raised, or was within the last 5 minutes, below"),
)  # fmt: skip

MEMORY: Final = (
    Figure("limit", _GAUGE, _BYTES, "the most that may be held"),
    Figure("held", _GAUGE, _BYTES, "what is held, never above it"),
    Figure("overhead", _GAUGE, _BYTES, "ledger and header, a part of it"),
    Figure("payload", _GAUGE, _BYTES, "what was asked for, of the active buffers"),
    Figure("by_state", _GAUGE, _BYTES, "memory by what it is used for", ("state",)),
    Figure("pressure", _FACT, _NONE, "`normal`, `elevated` or `critical`: how short the host is of memory"),
    Figure("pressure_changes", _COUNTER, _NONE, "levels of pressure that began, each since the broker started",
           ("level",)),
    Figure("retired", _COUNTER, _SLOTS, "slots and segments past `max_buffer_age`, since the broker started"),
)  # fmt: skip

SHARED: Final = (
    Figure("publications", _GAUGE, _BUFFERS, "shared publications"),
    Figure("queues", _GAUGE, _NONE, "those that are the memory of a queue"),
    Figure("bytes", _GAUGE, _BYTES, "what they take"),
    Figure("names", _GAUGE, _NONE, "those that can be found by a name"),
    Figure("holds", _GAUGE, _NONE, "how many are held, once for each process that does"),
    Figure("cached", _GAUGE, _BUFFERS, "those that are kept as caches"),
    Figure("cached_bytes", _GAUGE, _BYTES, "what these take"),
    Figure("idle_bytes", _GAUGE, _BYTES, "what of it nobody holds: given up as soon as memory is needed"),
    Figure("hits", _COUNTER, _NONE, "names that were found, since the broker started"),
    Figure("misses", _COUNTER, _NONE, "names that were not there, since the broker started"),
    Figure("evictions", _COUNTER, _BUFFERS, "caches that were given up, since the broker started"),
)  # fmt: skip

QUEUES: Final = (
    Figure("name", _FACT, _NONE, "what it can be found by, or empty"),
    Figure("row", _FACT, _NONE, "in the ledger"),
    Figure("bytes", _GAUGE, _BYTES, "its own memory; what lies in leases is theirs"),
    Figure("items", _GAUGE, _NONE, "its depth: put and not taken"),
    Figure("capacity", _FACT, _NONE, "the most items that it holds"),
    Figure("maxsize", _FACT, _NONE, "as it was asked for; 0: as many as its memory holds"),
    Figure("used_bytes", _GAUGE, _BYTES, "of its own memory, what these take"),
    Figure("dropped", _COUNTER, _NONE, "items that `overflow` dropped, since it was made"),
    Figure("joinable", _FACT, _NONE, "whether it is a `JoinableQueue`"),
    Figure("overflow", _FACT, _NONE, "`block`, `drop_oldest` or `drop_newest`"),
    Figure("on_dead_consumer", _FACT, _NONE, "`drop` or `requeue`"),
    Figure("shut", _FACT, _NONE, "whether it was shut down"),
    Figure("members", _FACT, _NONE, "the pids that have it"),
    Figure(
        "waiting_putters", _GAUGE, _NONE, "who sleeps until there is room; one that died sleeping counts for a second"
    ),
    Figure("waiting_getters", _GAUGE, _NONE, "who sleeps until there is an item"),
    Figure("putting", _FACT, _NONE, "the pids that have the putters' lock, or are about to: one that stays is stopped"),
    Figure("getting", _FACT, _NONE, "the same of the getters' lock"),
)

TIERS: Final = (
    Figure("size", _FACT, _BYTES, "of a slot; 0 for direct segments"),
    Figure("kind", _FACT, _NONE, "`pooled`, `chunk` or `direct`"),
    Figure("capacity", _GAUGE, _SLOTS, "that there can be"),
    Figure("warm", _GAUGE, _SLOTS, "with their pages reserved: they count towards the limit"),
    Figure("free", _GAUGE, _SLOTS, "of the warm ones, nobody's"),
    Figure("idle", _GAUGE, _SLOTS, "ready in clients' magazines"),
    Figure("leased", _GAUGE, _SLOTS, "may be written"),
    Figure("published", _GAUGE, _SLOTS, "published, and a ticket not done"),
    Figure("largest_run", _GAUGE, _SLOTS, "of chunks: the most that are nobody's side by side"),
    Figure("scattered", _GAUGE, _BUFFERS, "of chunks: runs that are in several pieces, stitched in each view"),
)

CLIENTS: Final = (
    Figure("seat", _FACT, _NONE, "its number; a process may have several seats"),
    Figure("pid", _FACT, _NONE, "its process"),
    Figure("uid", _FACT, _NONE, "whose process"),
    Figure("command", _FACT, _NONE, "its command, shown without directories and interpreter"),
    Figure("connected", _FACT, _NONE, "false: it has lost its connection, and keeps what it holds"),
    Figure("seen", _FACT, _NONE, "false: its process cannot be watched (a next broker in another namespace);"
           " it stays until its lock is free"),
    Figure("leases", _GAUGE, _BUFFERS, "its leases, and its publications of which a ticket has not been opened"),
    Figure("bytes", _GAUGE, _BYTES, "what these hold, and what is idle in its magazines"),
    Figure("unread", _GAUGE, _BUFFERS, "of them, the publications"),
    Figure("unread_bytes", _GAUGE, _BYTES, "what these hold"),
    Figure("reads", _GAUGE, _BUFFERS,
           "what it has open for reading; what several processes read counts for each"),
    Figure("read_bytes", _GAUGE, _BYTES, "what that takes"),
    Figure("held_by_views", _GAUGE, _BUFFERS, "what it has released or published and a view of it lives"),
    Figure("children", _FACT, _NONE, "the pids of its forks that read on what it had open, also after its own end"),
)  # fmt: skip


ALERTS: Final = (
    Figure("name", _FACT, _NONE, "of its rule, see alerts.md"),
    Figure("severity", _FACT, _NONE, "`warning` or `critical`"),
    Figure("figure", _FACT, _NONE, "what is judged"),
    Figure("value", _GAUGE, _NONE, "the figure at the last look"),
    Figure("worst", _GAUGE, _NONE, "the most that it was while the alert was raised"),
    Figure("text", _FACT, _NONE, "both in words"),
    Figure("about", _FACT, _NONE, "what it belongs to: a process, a category"),
    Figure("advice", _FACT, _NONE, "what to do"),
    Figure("raised_seconds", _GAUGE, Unit.SECONDS, "since it was raised"),
    Figure("cleared_seconds", _GAUGE, Unit.SECONDS, "since it was cleared; null: it is raised"),
)


def table(figures: tuple[Figure, ...]) -> str:
    """A table for the documentation."""
    lines = ["| field | kind | unit | meaning |", "|---|---|---|---|"]
    for figure in figures:
        of = f" by {' and '.join(figure.by)}" if figure.by else ""
        lines.append(f"| `{figure.name}` | {figure.kind}{of} | {figure.unit} | {figure.help} |")
    return "\n".join(lines) + "\n"


def texts() -> str:
    """All tables, one after the other."""
    return "\n".join(map(table, (STATS, MEMORY, SHARED, QUEUES, TIERS, CLIENTS, ALERTS)))


if __name__ == "__main__":
    print(texts(), end="")
