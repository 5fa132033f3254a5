"""torch's DataLoader and joblib over a pool, where they are installed."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest

import shmpool


def runs(folder: Path, script: str, *before: str) -> str:
    """What LOADER and a script say that run in an interpreter of their own: torch takes long to import, and stays."""
    path = folder / "script.py"
    path.write_text(LOADER + "if __name__ == '__main__':\n" + indent(script, "    "))
    command = [*before, sys.executable, "-W", "error::ResourceWarning", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADER = """
import collections, resource, sys, numpy, torch, shmpool
from torch.utils.data import DataLoader, Dataset

class Data(Dataset):
    def __init__(self, batches, nbytes):
        self.batches, self.length = batches, nbytes // 32
    def __len__(self):
        return self.batches * 8
    def __getitem__(self, at):
        return {"x": torch.full((self.length,), float(at)), "y": at, "names": (f"n{at}", numpy.full(3, at))}

def load(data, pool, **options):
    loader = DataLoader(data, batch_size=8, collate_fn=shmpool.torch.collate(pool), **options)
    assert len(shmpool.torch.batches(loader)) == data.batches
    for number, batch in enumerate(shmpool.torch.batches(loader)):
        want = list(range(number * 8, number * 8 + 8))
        assert batch["x"].shape == (8, data.length)
        assert batch["x"][:, 0].tolist() == batch["x"][:, -1].tolist() == batch["y"].tolist() == want
        assert list(batch["names"][0]) == [f"n{at}" for at in want]
        assert batch["names"][1][:, 2].tolist() == want
        batch["x"] += 1  # it is nobody else's
    return number + 1
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
class TestTorch:
    @pytest.mark.long
    def test_batches_arrive_as_torch_collates_them(self, tmp_path: Path) -> None:
        script = (
            "with shmpool.Broker(memory_limit='64MiB') as broker, broker.connect() as pool:\n"
            "    forkserver = {'num_workers': 1, 'multiprocessing_context': 'forkserver'}\n"
            "    for options in ({}, {'num_workers': 2}, forkserver):\n"
            "        print(load(Data(6, 1 << 20), pool, **options))\n"
            "    own = torch.utils.data.default_collate\n"
            "    Point = collections.namedtuple('Point', 'x y')\n"
            "    for samples in (\n"
            "        [torch.arange(6).view(2, 3)[:, ::2]] * 3, [numpy.ones((2, 0))] * 2, [1.5, 2.5], ['a', 'b'],\n"
            "        [Point(torch.ones(2, dtype=torch.bfloat16), [1, {'k': torch.zeros(3)}])] * 2,\n"
            "        [(torch.tensor(1),)] * 4,\n"
            "    ):\n"
            "        got, want = shmpool.torch.collate(pool)(samples).tensors(), own(samples)\n"
            "        assert type(got) is type(want) and str(got) == str(want), (got, want)\n"
            "    for wrong in ([torch.ones(2), torch.ones(3)], [object()]):\n"
            "        try: shmpool.torch.collate(pool)(wrong)\n"
            "        except (RuntimeError, TypeError): pass\n"
            "        else: raise AssertionError\n"
            "    try: next(iter(shmpool.torch.batches([1])))\n"
            "    except TypeError as error: assert 'collate_fn' in str(error)\n"
            "    del got\n"
            "    import gc, time; gc.collect()\n"
            "    while pool.stats().active_buffers: time.sleep(0.01)\n"
        )
        assert runs(tmp_path, script).split() == ["6", "6", "6"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs a /dev/shm of its own")
    @pytest.mark.parametrize(
        "batches", [pytest.param(30, marks=pytest.mark.long), pytest.param(500, marks=pytest.mark.exhaustive)]
    )
    def test_batches_of_each_size_arrive_where_there_is_little(self, tmp_path: Path, batches: int) -> None:
        """256 descriptors, 64 MiB of /dev/shm: they wait in line for room."""
        script = (
            "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
            "with shmpool.Broker(memory_limit='56MiB', max_clients=8) as broker, broker.connect() as pool:\n"
            f"    for nbytes in (9 << 20, 37 << 20): print(load(Data({batches}, nbytes), pool, num_workers=2))\n"
        )
        small = 'mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "$@"'
        assert runs(tmp_path, script, "unshare", "--mount", "sh", "-c", small, "sh").split() == [str(batches)] * 2


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
class TestJoblib:
    def test_calls_are_done_in_a_pool_of_its_own(self, pool: shmpool.Pool) -> None:
        import joblib

        shmpool.joblib.register()
        before = pool.stats().total_gets
        with joblib.parallel_config(backend="shmpool", n_jobs=2, pool=pool):
            arrays = [np.full(200_000, at) for at in range(6)]
            doubled = joblib.Parallel()(joblib.delayed(lambda array: array * 2)(array) for array in arrays)
            assert [int(one[0]) for one in doubled] == [0, 2, 4, 6, 8, 10]
            with pytest.raises(ZeroDivisionError):
                joblib.Parallel()(joblib.delayed(divmod)(1, at) for at in range(4))
            assert joblib.Parallel()(joblib.delayed(abs)(-at) for at in range(4)) == [0, 1, 2, 3]
        assert pool.stats().total_gets > before
        del doubled
        gc.collect()

    def test_one_job_is_done_here(self, pool: shmpool.Pool) -> None:
        import joblib

        shmpool.joblib.register()
        found: list[Any] = joblib.Parallel(n_jobs=1, backend="shmpool")(joblib.delayed(os.getpid)() for _ in range(2))
        assert found == [os.getpid()] * 2
