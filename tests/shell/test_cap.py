"""The cap, by what /dev/shm says itself: a real broker, processes that are killed, more asked for than there is.

That it holds at every step of the core, with simulated memory, is tests/core/test_simulation.py's.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell_helpers import ENV

from shmpool.protocol.sizing import MIB

LOAD = Path(__file__).parent / "cap_load.py"
IN_SHM = 'mount -t tmpfs -o size=256m,mode=1777 tmpfs /dev/shm && exec "$@"'


@pytest.mark.parametrize(
    "operations", [pytest.param(30_000, marks=pytest.mark.long), pytest.param(1_000_000, marks=pytest.mark.exhaustive)]
)
def test_dev_shm_never_has_more_than_the_limit(operations: int) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and mount namespaces")
    seed = random.getrandbits(32)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", IN_SHM, "sh", sys.executable, str(LOAD), str(operations), str(seed)],
        env=ENV, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    if "mount:" in done.stderr:
        pytest.skip("no tmpfs can be mounted")
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    had, most, looks, limit = map(int, done.stdout.split()[:4])
    print(f"seed {seed}: {done.stdout}")
    assert had >= operations
    assert looks > 100
    assert limit == 24 * MIB
    assert 0.8 * limit < most <= limit, f"seed {seed}: {most} bytes were used of {limit}"
