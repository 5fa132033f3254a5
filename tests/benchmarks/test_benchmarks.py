"""The benchmarks run and report what they measured; no times are judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.installed import installed  # noqa: E402
from benchmarks.plan import BATCH, Plan  # noqa: E402

pytestmark = pytest.mark.long
STATES = {"met", "missed", "absent"}


def benchmarks(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_without_a_name_they_are_listed():
    listed = benchmarks()
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert {"handoff", "stream", "strategies", "cycle", "messages", "footprint"} <= names


def test_a_report_holds_raw_figures_with_their_units(tmp_path):
    written = tmp_path / "handoff.json"
    run = benchmarks(
        *("handoff", "--sizes", "1KiB,1MiB", "--peers", "shmpool,shmpool chunked,floor,Pipe", "--modes", "copy"),
        *("--rounds", "2", "--seconds", "0.002", "--json", str(written)),
    )
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    assert report["name"] == "handoff"
    assert report["absent"] == {}
    [table] = report["tables"]
    units = [column["unit"] for column in table["columns"]]
    assert units == ["B", "", "s", "s", "x", "s", "s", "x"]
    rows = {(row[0], row[1]): row for row in table["rows"]}
    assert set(rows) == {
        *((1024, name) for name in ("shmpool", "floor", "Pipe")),
        *((1024**2, name) for name in ("shmpool", "shmpool chunked", "floor", "Pipe")),
    }
    assert all(0 < row[2] <= row[3] for row in rows.values())
    median, low, high = rows[1024, "floor"][4]
    assert low <= median <= high
    assert [bar["name"] for bar in report["bars"]] == ["copy 1 KiB: shmpool to Pipe"]
    assert {bar["state"] for bar in report["bars"]} <= STATES


def test_two_trees_are_measured_beside_each_other(tmp_path):
    written = tmp_path / "cycle.json"
    run = benchmarks("cycle", "--against", ".", "--sizes", "1KiB", *("--rounds", "2", "--seconds", "0.001"),
                     "--json", str(written))  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    [table] = report["tables"]
    assert [row[1] for row in table["rows"]] == [
        "lease + release",
        "whole cycle",
        "lease",
        "publish",
        "open",
        "release",
    ]
    assert all(row[4] == row[2] / row[3] for row in table["rows"])


def test_both_clients_are_measured_beside_each_other(tmp_path):
    """Where the compiled one is not there, the plain one is, and the bar of both is not met."""
    written = tmp_path / "cycle.json"
    quick = ("--sizes", "1KiB", "--rounds", "2", "--seconds", "0.001", "--json", str(written))
    for pure in ("", "1"):
        run = benchmarks("cycle", *quick, SHMPOOL_PURE=pure)
        assert run.returncode in (0, 1), run.stderr
        [report] = json.loads(written.read_text())["reports"]
        names = [column["name"] for column in report["tables"][0]["columns"]]
        is_compiled = report["machine"]["client"] == "compiled"
        assert ({"plain", "compiled"} <= set(names)) == is_compiled
        assert ("compiled" in report["absent"]) == (not is_compiled)
        assert {bar["name"]: bar["state"] for bar in report["bars"]}.get("compiled whole cycle, 1 KiB", "absent") in (
            STATES if is_compiled else {"absent"}
        )


def test_the_results_are_written_by_one_command_and_say_what_was_cut_off(tmp_path):
    pytest.importorskip("matplotlib")  # it draws
    run = benchmarks("results", "--only", "memcpy", "--minutes", "2", "--folder", str(tmp_path / "new"))
    assert run.returncode in (0, 1), run.stderr
    written = (tmp_path / "new" / "RESULTS.md").read_text()
    assert "### memcpy" in written
    assert "| size |" in written
    run = benchmarks("results", "--only", "stream", "--minutes", "0.01", "--folder", str(tmp_path))
    assert run.returncode == 1
    written = (tmp_path / "RESULTS.md").read_text()
    assert "### stream" in written
    assert "cut off after" in written or "It did not end within its 1 s." in written


def test_a_benchmark_that_is_to_end_in_time_makes_fewer_rounds_of_each_comparison_and_says_so(tmp_path):
    written = tmp_path / "memcpy.json"
    run = benchmarks(
        *("memcpy", "--sizes", "1KiB,4KiB", "--rounds", "1000", "--seconds", "0.02", "--within", "1"),
        *("--json", str(written)),
    )
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    assert len(report["tables"][0]["rows"]) == 2
    assert "2 comparisons had fewer rounds than asked for" in report["notes"][-1]
    assert "--within 1" in report["command"]


def test_what_is_large_and_copied_is_told_of_at_once_and_everything_else_in_batches():
    assert Plan(4 << 20, 16).batch == Plan(10 << 20, 16, fills=False).batch == 1
    assert Plan(1 << 20, 16).batch == Plan(4 << 20, 16, fills=False, drains=False).batch == BATCH
    assert Plan(1024, 4).batch == 4


def test_streams_are_judged_by_the_bars_of_each_part(tmp_path):
    written = tmp_path / "streams.json"
    run = benchmarks(
        *("streams", "--parts", "copy,tee,stitched,write,streamed", "--sizes", "256KiB,1MiB", "--objects", "200"),
        *("--rounds", "2", "--seconds", "0.004", "--json", str(written)),
    )
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    assert report["absent"] == {}
    assert len(report["tables"]) == 5
    assert {bar["state"] for bar in report["bars"]} <= {"met", "missed"}
    kinds = ("copy 256 KiB", "tee, reads", "stitched view", "write 1 MiB", "touch 1 MiB")
    assert all(any(bar["name"].startswith(kind) for bar in report["bars"]) for kind in kinds)
    assert benchmarks("streams", "--parts", "nonsense").returncode == 2


def test_a_tree_that_has_no_shmpool_is_refused(tmp_path):
    run = benchmarks("cycle", "--against", str(tmp_path))
    assert run.returncode == 2
    assert "give the root of a checkout" in run.stderr


def test_a_report_prints_as_markdown(tmp_path):
    written = tmp_path / "memcpy.json"
    assert benchmarks("memcpy", "--sizes", "4KiB", "--rounds", "2", "--json", str(written)).returncode == 0
    printed = benchmarks("report", str(written))
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("### memcpy\n")
    assert "`python -m benchmarks memcpy --sizes 4KiB --rounds 2`" in printed.stdout
    assert "| 4 KiB |" in printed.stdout


def test_a_peer_that_cannot_start_is_reported_with_the_reason():
    code = """if True:
        from benchmarks.contest import contest
        from benchmarks.options import Options
        from benchmarks.pair import Entry
        from benchmarks.plan import Plan
        broken = Entry("broken", "shmpool", {"memory_limit": "a lot"})
        with contest([broken, Entry("floor", "floor")], Options(rounds=1, seconds=0.001)) as running:
            assert list(running.run(Plan(1000))) == ["floor"]
        print(running.absent)
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "'broken'" in run.stdout
    assert "memory_limit" in run.stdout


@pytest.mark.exhaustive
def test_scale_measures_each_event_in_each_pool(tmp_path):
    written = tmp_path / "scale.json"
    run = benchmarks("scale", "--rounds", "1", "--clients", "1,20", "--leases", "100,500", "--json", str(written))
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    events, turns, away, shared = report["tables"]
    for table in (events, turns):
        assert {row[1] for row in table["rows"]} == {1, 20}
        assert all(all(took > 0 for took in row[2:4]) for row in table["rows"])
    assert {"Refill of a ready slot", "Cancel", "Hello"} <= {row[0] for row in events["rows"]}
    assert {"asked for stats", "a client's death"} <= {row[0] for row in turns["rows"]}
    assert all(took > 0 for took in away["rows"][0])
    assert len(report["bars"]) == len({row[0] for row in (*events["rows"], *turns["rows"])}) + 1 + len(shared["rows"])


def test_a_footprint_is_that_of_an_installed_and_byte_compiled_package(monkeypatch):
    """A source tree under PYTHONDONTWRITEBYTECODE is compiled anew by every import."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("SHMPOOL_PURE", "1")  # which is built at once
    look = (
        "import shmpool, sys; ours = [module for name, module in sys.modules.items() if name.startswith('shmpool')];"
        "print(*(module.__cached__ for module in ours if module.__file__.endswith('.py')))"  # the others are compiled
    )
    with installed() as environment:
        target = environment["PYTHONPATH"]
        run = subprocess.run(
            [sys.executable, "-P", "-c", look], env=environment, cwd="/", capture_output=True, text=True, check=True
        )
        compiled = [Path(path) for path in run.stdout.split()]
        assert len(compiled) > 20
        assert all(path.is_relative_to(target) and path.exists() for path in compiled)
    assert not Path(target).exists()


def test_a_footprint_is_told_as_a_ratio_to_what_a_worker_cannot_do_without(tmp_path):
    written = tmp_path / "footprint.json"
    run = benchmarks("footprint", "--rounds", "1", "--json", str(written), SHMPOOL_PURE="1")  # which is built at once
    assert run.returncode in (0, 1), run.stderr
    [report] = json.loads(written.read_text())["reports"]
    start = report["tables"][1]
    assert [column["unit"] for column in start["columns"]] == ["", "s", "s", "s", "x", "s", "s"]
    whole, behind = start["rows"]
    assert whole[2] is None
    assert 0 < behind[2] < behind[3] < whole[3]
    for _, needed, _, attached, ratio, *_ in (whole, behind):
        assert ratio == pytest.approx(attached / needed)
