"""What monitoring sees: metrics, their endpoint, `shmpool check`, and the files that come with them."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from pathlib import Path

import pytest
import yaml
from cli_helpers import shmpool_command
from prometheus_client.parser import text_string_to_metric_families

import shmpool
import shmpoold
from shmpool import exposition
from shmpool.cli.check import Verdict, judge
from shmpool.protocol.metrics import MEMORY, SHARED, STATS, Kind
from shmpool.stats import query
from shmpoold.shell.exporter import Exporter
from shmpoold.shell.segments import Access

MONITORING = Path(shmpoold.__file__).parents[1] / "units" / "monitoring"


@pytest.fixture
def samples(broker: shmpool.Broker, pool: shmpool.Pool) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a scrape has, read by Prometheus' own parser; two leases are out."""
    with pool.lease(100), pool.lease(300_000):
        text = exposition.text(query(broker.address)).decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and "`" not in family.documentation, family.name
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_metrics_have_conventional_names_and_the_right_values(samples) -> None:  # type: ignore[no-untyped-def]
    leases = {(labels["strategy"], labels["category"]): value for labels, value in samples["shmpool_leases_total"]}
    assert leases["pooled", "small"] == leases["chunked", "large"] == 1 and sum(leases.values()) == 2
    assert samples["shmpool_active_buffers"] == [({}, 2.0)]
    states = {labels["state"]: value for labels, value in samples["shmpool_memory_bytes"]}
    assert set(states) == {"free", "idle", "leased", "published"} and states["leased"] > 300_000
    assert samples["shmpool_clients"] == [({}, 1.0)]
    counts = {labels["category"]: value for labels, value in samples["shmpool_lease_latency_seconds_count"]}
    ends = [
        labels["le"] for labels, _ in samples["shmpool_lease_latency_seconds_bucket"] if labels["category"] == "small"
    ]
    assert counts["small"] == counts["large"] == 1 and ends[0] == "2.56e-07" and ends[-1] == "+Inf"


def test_every_declared_figure_is_told_or_follows_from_one_that_is(samples) -> None:  # type: ignore[no-untyped-def]
    told = set(samples)
    for expression in exposition.DERIVED.values():
        assert set(re.findall(r"shmpool_\w+", expression)) <= told
    for prefix, figures in (("shmpool_", STATS), ("shmpool_memory_", MEMORY), ("shmpool_shared_", SHARED)):
        for figure in figures:
            if figure.kind is Kind.FACT or figure.name in (*exposition.DERIVED, *exposition.TABLES):
                continue
            stem = exposition.NAMES.get(figure.name, figure.name.removesuffix("_ns"))
            assert any(name.startswith(prefix + stem) for name in told), figure.name


RULES = yaml.safe_load((MONITORING / "prometheus-alerts.yml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
ASKED = [
    *(rule["expr"] for group in RULES["groups"] for rule in group["rules"]),
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
]
DURATION = r"\d+(ms|[smhdwy])"
#: What Prometheus adds to each series, and a scrape that failed has.
ADDED = {"instance", "job"}


def labels_of(expression: str) -> tuple[set[str], set[str]]:
    """The labels that an expression selects or groups by, and those that its result has."""
    grouped = [set(re.findall(r"\w+", words)) for words in re.findall(r"\bby \(([^)]*)\)", expression)]
    selected = set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
    return set().union(*grouped) | selected, grouped[0] - {"le"} if grouped else set()


def test_the_rules_and_the_dashboard_ask_for_metrics_that_there_are(samples) -> None:  # type: ignore[no-untyped-def]
    asked = {name for expression in ASKED for name in re.findall(r"shmpool_\w+", expression)}
    assert len(asked) > 10
    assert asked - set(samples) <= {"shmpool_alert"}  # it has a series once there was an alert
    labels = {name: set().union(*(labels for labels, _ in found)) for name, found in samples.items()}
    labels["shmpool_alert"] = {"name", "severity"}
    for expression in ASKED:
        names = re.findall(r"shmpool_\w+", expression)
        assert labels_of(expression)[0] <= ADDED.union(*(labels[name] for name in names)), expression
        for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
            assert name.endswith(("_total", "_bucket", "_sum", "_count")), f"{name} is no counter"
        for by in re.findall(r"histogram_quantile\([^,]*, sum by \(([^)]*)\)", expression):
            assert "le" in by


def test_the_rules_are_what_prometheus_takes() -> None:
    """As strictly as its promtool: no key that it does not know, durations and templates that it reads."""
    assert set(RULES) == {"groups"}
    names = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    assert len(set(names)) == len(names) >= 4
    for group in RULES["groups"]:
        assert set(group) <= {"name", "interval", "limit", "rules"} and group["rules"]
        for rule in group["rules"]:
            assert {"alert", "expr", "labels", "annotations"} <= set(rule)
            assert set(rule) <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
            assert re.fullmatch(r"[A-Za-z_]\w*", rule["alert"])
            assert re.fullmatch(DURATION, rule.get("for", "0s"))
            assert set(rule["annotations"]) == {"summary", "description"}
            texts = [*rule["labels"].values(), *rule["annotations"].values()]
            assert all(isinstance(text, str) and text.count("{{") == text.count("}}") for text in texts)
            kept = labels_of(rule["expr"])[1] or ADDED
            assert set(re.findall(r"\$labels\.(\w+)", " ".join(texts))) <= kept, rule["alert"]


def test_the_dashboard_is_what_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']} lies over another"
        taken |= cells
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids)
        assert all("$instance" in target["expr"] for target in panel["targets"])
        assert all(set(re.findall(r"{{(\w+)}}", t.get("legendFormat", ""))) <= _legend(t) for t in panel["targets"])


def _legend(target: dict[str, str]) -> set[str]:
    """The labels that a legend may name: those of the result, which are all where nothing is grouped."""
    kept = labels_of(target["expr"])[1]
    return kept or {"instance", "job", "state", "kind", "size", "leak", "name", "severity", "uid", "category"}


def test_each_expression_is_promql() -> None:
    parser = pytest.importorskip("promql_parser", reason="pip install promql-parser")
    for expression in ASKED:
        parser.parse(expression.replace("$__rate_interval", "5m").replace("$instance", "any"))


def scrape(path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_endpoint_serves_the_owner_alone_and_goes_with_the_broker(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.sock")
    with socket.socket(socket.AF_UNIX) as stale:  # left by one that was killed
        stale.bind(path)
    with shmpool.Broker(memory_limit="16MiB", metrics_address=path):
        assert os.stat(path).st_mode & 0o777 == 0o600
        for _ in range(2):
            status, text = scrape(path)
            assert status == 200 and "shmpool_memory_limit_bytes 1.6777216e+07" in text
        with pytest.raises(shmpool.ConfigError, match="somebody serves"):
            shmpool.Broker(memory_limit="16MiB", metrics_address=path)
    assert not os.path.exists(path)


def test_the_endpoint_serves_a_loopback_address_and_no_other() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with shmpool.Broker(memory_limit="16MiB", metrics_address=f"127.0.0.1:{port}"):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/metrics")
        assert connection.getresponse().read().startswith(b"# HELP")
        connection.close()
    for wrong, why in (("0.0.0.0:9464", "no loopback"), ("9464", "no address"), ("127.0.0.1:0", "no address")):
        with pytest.raises(shmpool.ConfigError, match=why):
            shmpool.Broker(memory_limit="16MiB", metrics_address=wrong)


def test_a_scrape_that_the_broker_does_not_answer_is_told_so_and_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that is under way when it stops: stopping is silent."""
    path = str(tmp_path / "metrics.sock")
    exporter = Exporter(path, str(tmp_path / "no-broker.sock"), Access())
    exporter.start()
    try:
        status, text = scrape(path)
    finally:
        exporter.stop()
    assert status == 503 and "no broker answers" in text
    assert capfd.readouterr().err == ""


def test_the_command_prints_metrics(broker: shmpool.Broker) -> None:
    done = shmpool_command("stats", "--prometheus", SHMPOOL_SOCKET=broker.address)
    assert done.returncode == 0 and any(text_string_to_metric_families(done.stdout)), done.stderr


def test_check_says_how_it_is_by_its_status(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    done = shmpool_command("check", SHMPOOL_SOCKET=broker.address)
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(
        r"OK: 1 client, .* of .* \| held=\d+B;;;0;\d+ active=0 clients=1 misses=0c timeouts=0c\n", done.stdout
    )
    gone = shmpool_command("check", "--socket", "/nowhere/broker.sock")
    assert gone.returncode == 2 and gone.stdout.startswith("CRITICAL: no broker answers at /nowhere/broker.sock")


def test_check_judges_by_the_worst_alert_that_is_raised(broker: shmpool.Broker) -> None:
    stats = query(broker.address)
    line = {"text": "rows: 1", "about": "pid 7", "severity": "critical", "cleared_seconds": None}
    for states, verdict in (
        ([{**line, "severity": "warning"}], Verdict.WARNING),
        ([{**line, "severity": "warning"}, line], Verdict.CRITICAL),
        ([{**line, "cleared_seconds": 5.0}], Verdict.OK),
    ):
        stats.alert_states[:] = states
        assert judge(stats)[0] is verdict
    stats.alert_states[:] = [line]
    assert judge(stats)[1].startswith("rows: 1 (pid 7) | ")
    stats.alert_states.clear()
    stats.alerts[:] = ["2 requests wait for memory"]
    assert judge(stats) == (Verdict.WARNING, judge(stats)[1]) and "2 requests wait" in judge(stats)[1]
