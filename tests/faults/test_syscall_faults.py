"""Every system call of the shell fails once, in turn: what the broker promises then.

The whole daemon runs in this process and serves a client that leases, returns, publishes and
leaves (`inprocess`). The n-th call raises; for every n, in a broker that starts anew and in
one that takes a kept pool up. Either `service.run` raises a clear error and has left nothing
behind, or the broker works: the client's error is a clear one, a second client is served,
everything comes back, the account is exact, and after the end nothing is left.

Not covered: calls that fail halfway (a short write), and that fail again and again.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable
from pathlib import Path

import inprocess
import pytest
from corners import corner
from inprocess import CHUNKS, POOLED, Client, Daemon, Faults, Refused, descriptors, failing, run_daemon, segments_left

from shmpool.errors import ConfigError
from shmpool.protocol.header import SEAT_START, seat_at
from shmpoold.shell import cleanup

#: What a call may really say, of the numbers that are tried.
LIKELY = {
    "posix_fallocate": (errno.ENOSPC, errno.EINTR, errno.EIO), "ftruncate": (errno.ENOSPC, errno.EINTR, errno.EIO),
    "mmap": (errno.ENOMEM, errno.EACCES), "madvise": (errno.ENOMEM, errno.EIO, errno.EINTR),
    "open": (errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.EINTR), "unlink": (errno.EACCES, errno.EIO),
    "accept": (errno.EMFILE, errno.ENOMEM, errno.EINTR), "socket": (errno.EMFILE, errno.ENOMEM, errno.EACCES),
    "fcntl": (errno.EINTR, errno.EIO, errno.EACCES), "flock": (errno.EINTR, errno.EIO, errno.ENOMEM),
    "pidfd_open": (errno.EMFILE, errno.ENOMEM), "recv": (errno.EIO, errno.ENOMEM), "send": (errno.EIO, errno.ENOMEM),
}  # fmt: skip
OTHERS = (errno.EIO, errno.ENOMEM, errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.EINTR)
#: Without these nothing can be removed, and that is all that may be left.
REMOVING = ("unlink", "shm_unlink", "listdir")
#: One in so many calls of a name fails by default.
STEP = 6
with_others = pytest.mark.parametrize("any_others", corner(False, True), ids=["likely", "any"])


@pytest.fixture(autouse=True)
def only_our_pools(caplog: pytest.LogCaptureFixture) -> None:
    inprocess.POOLS.clear()
    caplog.set_level(logging.CRITICAL)


async def work(daemon: Daemon, address: str) -> None:
    """A client that does everything once and leaves without a word. Raises Refused."""
    async with Client(daemon) as client:
        await client.connect(address)
        (kept,) = await client.refill(1, POOLED)
        await client.give_back(*await client.refill(2, POOLED), *await client.refill(3, CHUNKS, 3))
        (published,) = await client.direct(4, 100_000)
        await client.publish(published, 100_000, 0)
        await client.give_back(*await client.direct(5, 5000))
        await client.publish(kept, 100, client.seat)


async def check(daemon: Daemon, address: str) -> None:
    """Everything has come back, so that one client can have all of it: what is idle is cooled."""
    await daemon.until_all_is_back()
    inventory = daemon.pool.core.inventory
    everything = inventory.limit - inventory.overhead
    async with Client(daemon) as client:
        await client.connect(address)
        await client.give_back(*await client.direct(1, everything))
    await daemon.until_all_is_back()
    assert inventory.held == inventory.overhead


class Trial:
    """One run of the daemon in which one call fails."""

    def __init__(self, address: str, faults: Faults | None = None) -> None:
        self.config = inprocess.small_config(address)
        self.faults = faults or Faults()
        self.refused: list[Refused] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """`error` is what `service.run` raised; anything but a clear one is raised here."""
        before = descriptors()
        with failing(self.faults):
            try:
                run_daemon(self.config, self._scenario)
            except TimeoutError:
                raise
            except (OSError, ConfigError) as error:
                self.error = error
        assert self.error is None or str(self.error)
        assert len(self.refused) <= (self.faults.fired is not None), self.refused
        assert descriptors() <= before

    async def _scenario(self, daemon: Daemon) -> None:
        for attempt in (work, check):
            try:
                await attempt(daemon, self.config.socket)
            except Refused as error:
                self.refused.append(error)
                await attempt(daemon, self.config.socket)


def clean_up(address: str) -> None:
    """``shmpoold --cleanup``."""
    for _ in cleanup.clean_up(address):
        pass


def numbers(calls: list[str], *, any_others: bool) -> list[tuple[int, int]]:
    """(n, errno): a likely number for each call, and any other; others for the next call of its name. By default
    each name's first call and one in so many of the rest."""
    seen: dict[str, int] = {}
    chosen = []
    first = random.randrange(STEP)
    for n, name in enumerate(calls):
        at = seen[name] = seen.get(name, -1) + 1
        if at and not any_others and n % STEP != first:
            continue
        likely = LIKELY.get(name, OTHERS)
        chosen += [(n, likely[at % len(likely)]), (n, OTHERS[at % len(OTHERS)])][: 1 + any_others]
    return sorted(set(chosen))


def try_all(address: str, prepare: Callable[[], None], *, any_others: bool) -> None:
    """Let every call fail that a run without faults makes."""
    prepare()
    trial = Trial(address)
    trial.run()
    assert trial.error is None
    assert segments_left() == set()
    calls = trial.faults.calls
    chosen, fired = numbers(calls, any_others=any_others), 0
    for n, number in chosen:
        prepare()
        before = segments_left()
        trial = Trial(address, Faults(n, number))
        try:
            trial.run()
            fired += trial.faults.fired is not None
            if trial.error is not None and before:  # the kept pool stays, less what the dead had, or it is gone
                assert segments_left() <= before
                again = Trial(address)
                again.run()
                assert again.error is None
            if trial.faults.fired in REMOVING:
                clean_up(address)
            assert segments_left() == set()
        except BaseException as error:
            error.add_note(f"call {n}, {calls[n]}, fails with {errno.errorcode[number]}")
            raise
    # Which timers come before the end is chance, and more of it on a busy machine: some runs have fewer calls.
    assert fired > len(chosen) // 2


@with_others
def test_a_new_broker_survives_the_failure_of_any_call_or_says_why_not(tmp_path: Path, any_others: bool) -> None:
    try_all(str(tmp_path / "run" / "broker.sock"), lambda: None, any_others=any_others)


@with_others
def test_a_broker_that_takes_a_pool_up_survives_the_failure_of_any_call_or_says_why_not(
    tmp_path: Path, any_others: bool
) -> None:
    address = str(tmp_path / "run" / "broker.sock")

    async def fill(daemon: Daemon) -> None:
        """Leave a seat that nobody has any more, with something of everything."""
        async with Client(daemon) as client:
            await client.connect(address)
            await client.refill(1, CHUNKS, 3)
            await client.publish(*await client.refill(2, POOLED), 100, client.seat)
            await client.publish(*await client.direct(3, 5000), 5000, 0)
            await client.direct(4, 5000)
            daemon.pool.store.header[seat_at(client.seat) + SEAT_START] += 1  # as if it had been another process
            daemon.server._is_stopped = True  # and it is not seen to go

    def prepare() -> None:
        run_daemon(inprocess.small_config(address, on_stop="keep"), fill)

    try_all(address, prepare, any_others=any_others)
