"""The examples run, and say what they should."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_frames_arrive_whole():
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "frames.py")], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert "200 frames" in run.stdout
    assert run.stderr == ""


def test_uploaded_files_are_the_same_and_have_their_checksums(tmp_path: Path) -> None:
    sources = [Path(__file__), EXAMPLES / "frames.py"]
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "tee_upload.py"), str(tmp_path), *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    for source, line in zip(sources, run.stdout.splitlines(), strict=True):
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()
        assert line == f"{hashlib.sha256(source.read_bytes()).hexdigest()} {source}"


@pytest.mark.long
def test_objects_are_reduced_by_workers() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "objects.py")], capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "50 frames of 921600 bytes reduced" in run.stdout


@pytest.mark.long
def test_what_is_born_shared_or_read_by_many_arrives() -> None:
    for name, says in (("born", "50 frames, filled"), ("shared", "4 processes read one table, which was made once")):
        run = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, timeout=100
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert says in run.stdout


def test_a_web_service_has_its_uploads_worked_on_in_shared_memory() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "web_service.py")], capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "dark pixels of 4 images: [2000, 2000, 0, 0]" in run.stdout


@pytest.mark.long
def test_a_pool_s_map_passes_its_frames_through_the_pool() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "pool_map.py")], capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "20 frames, steepest 255, 20 went through the pool" in run.stdout


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_data_loader_s_batches_arrive() -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "data_loader.py")], capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "10 batches, brightness 49.5" in run.stdout


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_works_in_place() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "torch_in_place.py")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "in place" in run.stdout


def start_video(frames: int, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", *options, str(EXAMPLES / "video.py"), str(frames)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_frames_of_a_video_come_in_order() -> None:
    run = start_video(30)
    out, err = run.communicate(timeout=100)
    assert (run.returncode, err) == (0, "")
    assert "30 frames, in order" in out
    assert len((EXAMPLES / "video.py").read_text().splitlines()) < 60


def test_a_video_ends_on_ctrl_c_of_the_whole_group() -> None:
    # The frame that it interrupts on its way out of the queue is released, which is told to who wants to know.
    run = start_video(1_000_000, "-W", "ignore::ResourceWarning")
    assert run.stdout is not None
    assert "first frame" in run.stdout.readline()
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=100)  # all that had its stdout are gone
    assert (run.returncode, err) == (130, "")
