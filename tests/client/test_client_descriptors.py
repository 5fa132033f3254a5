"""A client's process runs out of descriptors: clear errors, nothing lost, and it goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from client_helpers import MIB, Connect, Start, eventually, pattern, run_script

import shmpool
from shmpool.stats import query

SIZES = [1000, 100_000, 300_000, 2 * MIB]
#: With so many a pool has all that it ever needs for these sizes.
ENOUGH = 14


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    """Only so many may be opened in this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(60)]  # the gaps below the last are filled
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, hard))
    for _ in range(free):
        os.close(taken.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def hand_over(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        lease.write(pattern(nbytes))
        handle = lease.publish()
    try:
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(nbytes)
    except shmpool.ConfigError:
        discard.append(handle)
        raise


#: What could not be opened.
discard: list[shmpool.Handle] = []


@pytest.mark.parametrize("free", range(ENOUGH + 1))
def test_pool_with_too_few_descriptors_fails_clearly_and_goes_on_later(connect: Connect, free: int) -> None:
    address = connect().address
    pool, failed = None, 0
    with descriptors(free):
        try:
            pool = shmpool.connect(address)
        except (shmpool.BrokerUnavailable, shmpool.ConfigError) as error:
            assert "`ulimit -n`" in str(error)  # noqa: PT017
            failed += 1
        for nbytes in SIZES if pool else ():
            try:
                hand_over(pool, nbytes)
            except shmpool.ConfigError:
                failed += 1
    assert failed or free >= ENOUGH - 4
    with pool or shmpool.connect(address) as pool:
        for nbytes in SIZES:
            hand_over(pool, nbytes)
        while discard:
            pool.discard(discard.pop())
    eventually(lambda: len(query(address).clients) == 1 and not query(address).active_buffers)


def test_queue_whose_bell_has_no_descriptor_says_so_and_keeps_its_items_in_order(connect: Connect) -> None:
    watching, putting = connect().queue("watched"), connect().queue("watched")
    putting.put(0)
    with descriptors(0), pytest.raises(shmpool.ConfigError, match="`ulimit -n`"):
        watching.fileno()
    watching.fileno()
    with descriptors(0), pytest.raises(shmpool.ConfigError, match="`ulimit -n`"):
        putting.put(1)
    putting.put(2)
    assert [watching.get_nowait(), watching.get_nowait()] == [0, 2], "what was refused was put"
    assert watching.empty()
    putting.close()
    watching.close()


FIRST_CALLS = """
import os, resource, sys, shmpool
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
pool = shmpool.connect(sys.argv[1])
handle = pool.lease(100).publish()

def end(made):
    for name in ("release", "close"):
        if hasattr(made, name) and not isinstance(made, type): return getattr(made, name)()

for first in (
    pool.stats, lambda: pool.put(1), lambda: pool.empty(5), lambda: pool.share(1), lambda: pool.queue("first"),
    lambda: pool.open_writer(10), lambda: pool.open_reader(handle), pool.stream, lambda: shmpool.copy,
    lambda: shmpool.aio, lambda: shmpool.install, lambda: shmpool.Broker,
):
    none = os.open("/dev/null", os.O_RDONLY)
    os.close(none)
    resource.setrlimit(resource.RLIMIT_NOFILE, (none, hard))
    try: print("ok", first())
    except shmpool.ConfigError as error: print("`ulimit -n`" in str(error), "import" in str(error))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    end(first())
os._exit(0)
"""


def test_first_call_that_cannot_import_what_it_needs_says_so_and_works_later(start: Start) -> None:
    """Modules that few need are read when they are first needed."""
    done = run_script(FIRST_CALLS, start(handle_ttl="100ms").address)
    assert (done.stdout.splitlines(), done.stderr) == (["True True"] * 12, "")
