"""``python -m tests.soak --objects shared``: processes put, get, share, find, hold and make once, are killed, and so is
the broker; every object carries its checksum, and in the end everything has come back."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import shmpool
from shmpool.stats import query, query_invariants

from .brokers import Brokers

fork = multiprocessing.get_context("fork")
NAMES = [f"name {number}" for number in range(6)]
KEEPS: list[Any] = [False, False, True, "cache"]
PATIENCE = 60.0
#: What a shared publication, a name or a handle may come to beside kills: nothing of it is wrong.
EXPECTED = (
    shmpool.NotFound, shmpool.NameTaken, shmpool.StaleHandle, shmpool.HandleUsed, shmpool.LeaseTimeout,
    shmpool.BrokerUnavailable,
)  # fmt: skip


def make(chance: random.Random) -> dict[str, Any]:
    data = np.frombuffer(chance.randbytes(chance.choice([100, 5_000, 70_000, 400_000, 2_000_000])), np.uint8)
    return {"sum": zlib.crc32(data), "data": data}


def check(found: dict[str, Any]) -> None:
    if zlib.crc32(found["data"]) != found["sum"]:
        raise AssertionError("an object has other bytes than were shared")


def work(address: str, seed: int, seconds: float, mail: Any, wrong: Any) -> None:
    """One life: it ends by itself, or is killed at any step."""
    chance, end = random.Random(seed), time.monotonic() + seconds
    kept: list[Any] = []
    try:
        with shmpool.connect(address, timeout=PATIENCE) as pool:
            while time.monotonic() < end:
                with contextlib.suppress(*EXPECTED):
                    act(pool, chance, kept, mail)
                if len(kept) > 5:
                    check(found := kept.pop(chance.randrange(len(kept))))
                    del found
            while kept:
                check(kept.pop())
    except BaseException:
        wrong.put(traceback.format_exc())


def act(pool: shmpool.Pool, chance: random.Random, kept: list[Any], mail: Any) -> None:
    what, name = chance.random(), chance.choice(NAMES)
    if what < 0.2:
        ttl = chance.choice([None, 2])
        if chance.random() < 0.5:
            shared = pool.share(make(chance), ttl=ttl)
        else:
            shared = pool.share(make(chance), name, keep=chance.choice(KEEPS), ttl=ttl)
        kept.append(shared.get(copy=False))
        with contextlib.suppress(OSError):
            mail[1].send(shared)
    elif what < 0.4:
        kept.append(pool.find(name, timeout=chance.choice([0, 0.05])).get(copy=False))
    elif what < 0.55:
        kept.append(pool.get_or_share(name, lambda: make(chance), keep=chance.choice(KEEPS), timeout=1).get(copy=False))
    elif what < 0.65:
        pool.drop(name)
    elif what < 0.8:
        if mail[0].poll(0):
            got = mail[0].recv()
            kept.append(got.get(copy=False) if isinstance(got, shmpool.Shared) else pool.get(got, copy=False))
    elif what < 0.95:
        handle = pool.put(make(chance), ttl=1)
        buffer = pool.open(handle)
        buffer.give_back()
        kept.append(pool.get(handle, copy=False))
    else:
        pool.reclaim()


def run(seconds: float, workers: int, seed: int, *, kill_broker: bool, checksums: bool = False) -> dict[str, Any]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        address = str(Path(directory, "broker.sock"))
        brokers = Brokers(address, Path(directory, "log"), memory_limit="96MiB", max_clients=64, handle_ttl="2s",
                          on_stop="keep", checksums=checksums)  # fmt: skip
        brokers.start()
        wrong, lives, killed = fork.SimpleQueue(), [], 0
        try:
            end, restart_at = time.monotonic() + seconds, time.monotonic() + 5
            while time.monotonic() < end and wrong.empty():
                lives = [life for life in lives if life.is_alive() or life.join()]
                while len(lives) < workers:
                    arguments = address, chance.getrandbits(32), chance.uniform(0.5, 10), fork.Pipe(duplex=False), wrong
                    lives.append(fork.Process(target=work, args=arguments))
                    lives[-1].start()
                time.sleep(chance.uniform(0, 0.4))
                if chance.random() < 0.6:
                    chance.choice(lives).kill()  # nothing, where it has ended
                    killed += 1
                if kill_broker and time.monotonic() > restart_at:
                    brokers.end(signal.SIGKILL)
                    brokers.start()
                    restart_at = time.monotonic() + chance.uniform(2, 8)
            for life in lives:
                life.join(PATIENCE)
                if life.is_alive():
                    life.kill()
                    life.join()
                    wrong.put("a worker did not end by itself")
            stories = []
            while not wrong.empty():
                stories.append(wrong.get())
            with shmpool.connect(address, timeout=PATIENCE) as pool:
                for name in pool.names():
                    with contextlib.suppress(shmpool.NotFound):
                        pool.drop(name)
                deadline = time.monotonic() + PATIENCE
                while (stats := query(address)).active_buffers and time.monotonic() < deadline:
                    time.sleep(0.05)
            if stats.active_buffers:
                stories.append(f"{stats.active_buffers} buffers did not come back: {stats.shared}")
            if violation := query_invariants(address):
                stories.append(violation)
            return {"killed": killed, "brokers": brokers.starts, "gets": stats.total_gets, "wrong": stories}
        finally:
            with contextlib.suppress(Exception):
                brokers.end(signal.SIGTERM)
            brokers.close()
            shmpool_cleanup(address)


def shmpool_cleanup(address: str) -> None:
    """The pool is kept over restarts, so somebody has to remove it."""
    subprocess.run(
        [sys.executable, "-m", "shmpoold", "--socket", address, "--cleanup"], check=False, capture_output=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sharing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--kill-broker", action="store_true")
    parser.add_argument("--checksums", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    seconds, kill_broker = options.minutes * 60, options.kill_broker
    return report(seconds, options.workers, options.seed, kill_broker=kill_broker, checksums=options.checksums)


def report(seconds: float, workers: int, seed: int, *, kill_broker: bool, checksums: bool = False) -> int:
    """Run it and print its account; 1 when that does not close."""
    account = run(seconds, workers, seed, kill_broker=kill_broker, checksums=checksums)
    print({"seed": seed, "checksums": checksums, **account})
    print("the account does not close" if account["wrong"] else "the account closes")
    return 1 if account["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
