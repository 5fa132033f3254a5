"""The benchmarks that load a broker run and report; the gate tells slower from not slower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmpool

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.attacks import ATTACKS, endless  # noqa: E402
from benchmarks.mixes import MIXES, sizes_of  # noqa: E402
from benchmarks.trend import trend_of  # noqa: E402

QUICK = ("--rounds", "1", "--seconds", "0.02")


def report_of(written: Path, name: str, *arguments: str) -> dict:
    """Run a benchmark and read what it wrote; 0 and 1 say whether its bars were met."""
    command = [sys.executable, "-m", "benchmarks", name, *arguments, "--json", str(written)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode in (0, 1) and written.exists(), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    assert run.returncode == any(bar["state"] != "met" for bar in report["bars"])
    return report


def test_leases_that_miss_are_measured_with_up_to_64_clients(tmp_path):
    report = report_of(tmp_path / "broker.json", "broker", *QUICK)
    growing, one, many, stats = report["tables"]
    assert [row[0] for row in many["rows"]] == [1, 4, 16, 64]
    assert all(row[1] > 0 and 0 < row[2] <= row[3] for row in many["rows"])
    assert len(one["rows"]) == len(growing["rows"]) == 2 and len(report["bars"]) == 4
    assert [row[0] for row in stats["rows"]] == ["nobody leases", "never", "every 0.1 s", "without a pause"]


def test_latencies_are_told_by_category_and_step(tmp_path):
    report = report_of(tmp_path / "latency.json", "latency", "--workers", "3", *QUICK)
    summary, by_category = report["tables"]
    assert summary["rows"][0][0] == 3
    assert len(by_category["rows"]) == 16
    assert by_category["rows"][0][:2] == ["small", "lease"]


def test_a_short_soak_leaves_everything_as_it_was(tmp_path):
    report = report_of(tmp_path / "soak.json", "soak", "--minutes", "0.2")
    counts = {bar["name"]: bar["measured"] for bar in report["bars"] if bar["unit"] == "count"}
    assert max(counts.values()) <= 0, counts  # a segment that was kept at the beginning may have gone


@pytest.mark.parametrize(("factor", "state"), [(1000.0, "met"), (0.001, "missed")])
def test_the_gate_compares_with_the_recorded_ratios(tmp_path, monkeypatch, factor, state):
    monkeypatch.setenv("SHMPOOL_PURE", "1")  # one client's are enough
    baseline = json.loads((ROOT / "benchmarks" / "baseline.json").read_text())
    for entry in baseline["ratios"]:
        entry["ratio"] *= factor
    written = tmp_path / "baseline.json"
    written.write_text(json.dumps(baseline))
    quick = ("--rounds", "2", "--seconds", "0.0005")
    report = report_of(tmp_path / "gate.json", "gate", "--baseline", str(written), *quick)
    assert {bar["state"] for bar in report["bars"]} == {state}


@pytest.mark.parametrize("client", ["plain", "compiled"])
def test_a_lease_that_sleeps_fails_the_gate_in_every_pooled_category(client):
    if client == "compiled" and not shmpool.__compiled__:
        pytest.skip("the compiled part is not built")
    code = """if True:
        import time
        from shmpool import Pool
        lease = Pool.lease
        def slower(*arguments, **options):
            time.sleep(20e-6)
            return lease(*arguments, **options)
        Pool.lease = slower
        from benchmarks import gate
        from benchmarks.options import Options
        report = gate.run(Options(rounds=8))
        print([bar.name for bar in report.bars if bar.state == "missed"])
    """
    chosen = {**os.environ, "SHMPOOL_PURE": "1" if client == "plain" else ""}
    slowed = [sys.executable, "-c", code]
    run = subprocess.run(slowed, cwd=ROOT, env=chosen, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    for operation in ("lease + release", "whole cycle"):
        for category in ("small", "medium", "large", "very large"):
            assert f"'{client}: {operation}, {category} / standard library'" in run.stdout


def test_a_measure_that_was_not_recorded_fails_the_gate(tmp_path):
    written = tmp_path / "baseline.json"
    written.write_text(json.dumps({"ratios": []}))
    report = report_of(
        tmp_path / "gate.json", "gate", "--baseline", str(written), "--rounds", "1", "--seconds", "0.001"
    )
    assert {bar["state"] for bar in report["bars"]} == {"absent"}


def test_a_trend_has_its_slope_within_its_uncertainty():
    moments = [float(moment) for moment in range(240)]
    noisy = [5.0 * moment + (-1) ** int(moment) * 40 + (moment % 7) * 3 for moment in moments]
    trend = trend_of(moments, noisy)
    assert abs(trend.slope - 5.0) <= trend.uncertainty + 0.05
    assert trend_of(moments, [7.0] * 240) == (0.0, 0.0)
    with pytest.raises(ValueError, match="12 samples"):
        trend_of([1.0], [1.0])


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
def test_an_attack_that_is_kept_waiting_or_ended_begins_anew(monkeypatch, error):
    def attack(address):
        yield
        raise error

    monkeypatch.setitem(ATTACKS, "attack", attack)
    failures = []
    steps = endless("attack", "nowhere", lambda: failures.append(1))
    for _ in range(6):
        next(steps)
    steps.close()
    assert len(failures) == 3


def test_mixes_are_the_same_every_time():
    for mix in MIXES.values():
        sizes = sizes_of(mix, 200)
        assert sizes == sizes_of(mix, 200)
        assert min(sizes) > 0
