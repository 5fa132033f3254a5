"""The figures as Prometheus metrics, made from the one declaration (`protocol.metrics`).

Needs prometheus-client (``pip install shmpool[prometheus]``), which workers never import. The ledger
sums over all processes, the dead ones included, so there is no multiprocess mode and no folder of
files. Names are Prometheus' own way of saying what the declaration says: base units (bytes, seconds),
``_total`` for counters, labels for what a figure is told by. Figures that follow from others are not
told twice (`DERIVED`); what single processes hold is no time series, as pids come and go: that is
`shmpool leases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from .errors import ConfigError
from .protocol.figures import BUCKET_ENDS_NS
from .protocol.metrics import KEYS, MEMORY, QUEUES, SHARED, STATS, TIERS, Figure, Kind, Unit
from .stats import QueueStats, Stats, TierStats

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
except ImportError as error:
    raise ConfigError("Prometheus metrics need prometheus-client: pip install 'shmpool[prometheus]'") from error

#: What is told under another name than its own.
NAMES: Final = {
    "total_puts": "puts",
    "operations_by_strategy": "leases",
    "pool_hits": "hits",
    "pool_misses": "misses",
    "latency_histogram": "lease_latency",
    "epoch": "brokers",
    "by_state": "",
}
#: Where the declaration's words count on the line above, as the docs' table has it.
HELP: Final = {
    "operations_by_strategy": "leases",
    "pool_misses": "leases of a slot or a run that needed a round trip to the broker; direct ones are none",
    "held_by_views": "buffers released or published that wait for a view to die",
    "latency_histogram": "how long leases took: one in 64 is timed, with detailed_metrics each",
}
#: What has figures of its own.
TABLES: Final = ("memory", "shared", "queues", "tiers", "clients")
#: What follows from what is told, and how.
DERIVED: Final = {
    "total_gets": "sum(shmpool_leases_total)",
    "operations": "sum by (category) (shmpool_leases_total)",
    "strategies": "sum by (strategy) (shmpool_leases_total)",
    "average_latency_ns": "rate(shmpool_lease_latency_seconds_sum[5m]) / rate(shmpool_lease_latency_seconds_count[5m])",
    "p50_latency_ns": "histogram_quantile(0.5, rate(shmpool_lease_latency_seconds_bucket[5m]))",
    "p99_latency_ns": "histogram_quantile(0.99, rate(shmpool_lease_latency_seconds_bucket[5m]))",
}
_UNITS: Final = {Unit.BYTES: "bytes", Unit.NANOSECONDS: "seconds", Unit.RATIO: "ratio"}


class Collector:
    """Asks for the figures when it is scraped. *ask* may raise what `stats.query` raises."""

    def __init__(self, ask: Callable[[], Stats]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        return families(self._ask())


def text(stats: Stats) -> bytes:
    """In Prometheus' text format, for node_exporter's textfile collector."""
    return generate_latest(registry(lambda: stats))


def registry(ask: Callable[[], Stats]) -> CollectorRegistry:
    """One that has these figures and nothing else."""
    made = CollectorRegistry(auto_describe=False)
    made.register(Collector(ask))
    return made


def families(stats: Stats) -> Iterator[Metric]:
    """All metrics of one moment."""
    yield InfoMetricFamily("shmpool_pool", "the pool; it stays when the broker restarts", {"pool_id": stats.pool_id})
    for figure in STATS:
        if figure.name not in DERIVED and hasattr(stats, figure.name):
            yield from _family("shmpool", figure, getattr(stats, figure.name))
    for figure in MEMORY:
        if figure.name == "pressure":
            yield _state("shmpool_memory_pressure", stats.memory["pressure"])
        elif figure.name in stats.memory:
            yield from _family("shmpool_memory", figure, stats.memory[figure.name])
    for figure in SHARED:
        yield from _family("shmpool_shared", figure, stats.shared[figure.name])
    yield from _queues(stats.queues)
    yield from _tiers(stats.tiers)
    yield _alerts(stats.alert_states)
    yield from _clients(stats)


def _family(prefix: str, figure: Figure, value: Any) -> Iterator[Metric]:
    """A figure of a declared kind; facts and tables have their own ways."""
    about = HELP.get(figure.name, figure.help).replace("`", "")
    if figure.kind is Kind.FACT or not isinstance(value, int | float | dict) or figure.name in TABLES:
        return
    scale = 1e-9 if figure.unit is Unit.NANOSECONDS else 1
    unit = _UNITS.get(figure.unit, "") if not figure.name.endswith("bytes") else ""
    name = "_".join(filter(None, (prefix, NAMES.get(figure.name, figure.name.removesuffix("_ns")), unit)))
    if figure.kind is Kind.HISTOGRAM and isinstance(value, dict):
        histogram = HistogramMetricFamily(name, about, labels=figure.by)
        for key, one in value.items():
            histogram.add_metric([key], _buckets(one["counts"]), one["sum_ns"] * scale)
        yield histogram
        return
    make = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(name, about, labels=figure.by)
    for labels, number in _flat(value, len(figure.by)):
        family.add_metric(labels, number * scale)
    yield family


def _flat(value: Any, depth: int) -> Iterator[tuple[list[str], float]]:
    if not depth:
        yield [], value
        return
    for key, below in value.items():
        for labels, number in _flat(below, depth - 1):
            yield [key, *labels], number


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    ends = [f"{end / 1e9:g}" for end in BUCKET_ENDS_NS] + ["+Inf"]
    total, found = 0, []
    for end, count in zip(ends, counts, strict=True):
        total += count
        found.append((end, float(total)))
    return found


def _state(name: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, "1 for the level that it is: how short the host is of memory", labels=["level"])
    for level in KEYS["level"]:
        family.add_metric([level], float(level == value))
    return family


def _queues(queues: list[QueueStats]) -> Iterator[Metric]:
    """By name; those that have none together."""
    for figure, name, make in (
        ("items", "items", GaugeMetricFamily),
        ("waiting_putters", "waiting_putters", GaugeMetricFamily),
        ("waiting_getters", "waiting_getters", GaugeMetricFamily),
        ("dropped", "dropped", CounterMetricFamily),
    ):
        about = next(one.help for one in QUEUES if one.name == figure).replace("`", "")
        family = make(f"shmpool_queue_{name}", about, labels=["queue"])
        sums: dict[str, int] = {}
        for queue in queues:
            sums[queue.name] = sums.get(queue.name, 0) + getattr(queue, figure)
        for label, value in sums.items():
            family.add_metric([label], value)
        yield family


def _tiers(tiers: list[TierStats]) -> Iterator[Metric]:
    for figure in TIERS:
        if figure.kind is not Kind.GAUGE:
            continue
        family = GaugeMetricFamily(f"shmpool_tier_{figure.name}_slots", figure.help, labels=["kind", "size"])
        for tier in tiers:
            family.add_metric([tier.kind, str(tier.size)], getattr(tier, figure.name))
        yield family


def _alerts(states: list[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily("shmpool_alert", "1 for each alert that is raised", labels=["name", "severity"])
    for state in states:
        family.add_metric([state["name"], state["severity"]], float(state["cleared_seconds"] is None))
    return family


def _clients(stats: Stats) -> Iterator[Metric]:
    yield GaugeMetricFamily("shmpool_clients", "clients with a seat", value=len(stats.clients))
    away = sum(not client.connected for client in stats.clients)
    yield GaugeMetricFamily("shmpool_clients_away", "those that have lost their connection", value=away)
    users: Mapping[str, int] = {
        str(uid): sum(client.bytes + client.read_bytes for client in stats.clients if client.uid == uid)
        for uid in {client.uid for client in stats.clients}
    }
    family = GaugeMetricFamily("shmpool_user_bytes", "what a user's processes keep, read or written", labels=["uid"])
    for uid, nbytes in sorted(users.items()):
        family.add_metric([uid], nbytes)
    yield family
