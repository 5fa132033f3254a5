"""The examples run, and say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_frames_arrive_whole():
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "frames.py")], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert "200 frames" in run.stdout
    assert run.stderr == ""
