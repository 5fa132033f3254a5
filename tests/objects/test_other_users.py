"""Another user of the pool's group, as a real process of that user: who may find, read, make and drop what is
shared, and take what is put."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import settle

import shmpool
from shmpool.stats import query

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

GROUP, OWNER, MEMBER = 4242, 4301, 4302


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the broker of a user of its own, open to a group."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        address = str(Path(directory, "run", "broker.sock"))
        settings = [
            f"--set={key}" for key in ("memory_limit=32MiB", f"group={GROUP}", "handle_ttl=1", "on_stop=remove")
        ]
        broker = subprocess.Popen([sys.executable, "-m", "shmpoold", "--socket", address, *settings])
        try:
            shmpool.connect(address, timeout=60).close()
            yield address
        finally:
            broker.terminate()
            broker.wait(60)


def as_user(uid: int, body: Callable[[], Any]) -> Any:
    """What *body* returns in a process of that user, which is a member of the group."""
    import shmpool.objects.exchange
    import shmpool.objects.sharing  # noqa: F401 (the interpreter may lie where others cannot read)

    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([GROUP])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = True, body()
        except BaseException:
            answer = False, traceback.format_exc()
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            worked, result = pickle.load(pipe)
    finally:
        os.waitpid(pid, 0)
    assert worked, result
    return result


def test_members_of_the_group_find_and_read_and_the_maker_alone_drops(address: str) -> None:
    def make() -> None:
        with shmpool.connect(address) as pool:
            pool.share(np.arange(100_000), "table", keep=True).release()

    def use() -> tuple[list[str], int, str]:
        with shmpool.connect(address) as pool:
            total = int(pool.find("table").get().sum())
            try:
                pool.drop("table")
            except shmpool.ShmpoolError as error:
                return pool.names(), total, str(error)
            return [], 0, "it was dropped"

    def drop() -> list[str]:
        with shmpool.connect(address) as pool:
            pool.drop("table")
            return pool.names()

    as_user(OWNER, make)
    names, total, refusal = as_user(MEMBER, use)
    assert (names, total) == (["table"], sum(range(100_000)))
    assert str(OWNER) in refusal
    with shmpool.connect(address) as pool:  # root is neither, and may
        assert pool.names() == ["table"]
    assert as_user(OWNER, drop) == []


def test_a_name_is_taken_for_all_users(address: str) -> None:
    def take() -> str:
        with shmpool.connect(address) as pool:
            try:
                pool.share(b"theirs", "taken")
            except shmpool.NameTaken:
                return "taken"
            return "made"

    with shmpool.connect(address) as pool, pool.share(b"ours", "taken"):
        assert as_user(MEMBER, take) == "taken"
    assert as_user(MEMBER, take) == "made"


def test_a_ticket_is_whose_who_has_the_handle(address: str) -> None:
    with shmpool.connect(address) as pool:
        handle = pool.put(np.arange(50_000))

        def get() -> int:
            with shmpool.connect(address) as pool:
                return int(pool.get(handle).sum())

        assert as_user(MEMBER, get) == sum(range(50_000))
        with pytest.raises(LookupError):
            pool.get(handle)


def test_what_is_shared_is_read_only_for_another_user_too(address: str) -> None:
    """By the kernel: the page cannot be written, whatever its process does."""
    with shmpool.connect(address) as pool, pool.share(np.zeros(50_000), "constant") as shared:

        def write() -> int:
            with shmpool.connect(address) as pool:
                array = pool.find("constant").get(copy=False)
                pid = os.fork()
                if not pid:
                    faulthandler.disable()
                    ctypes.memset(array.ctypes.data, 1, 1)
                    os._exit(0)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        assert as_user(MEMBER, write) == -signal.SIGSEGV
        assert not shared.get().any()


def test_a_member_that_dies_holding_lets_go(address: str) -> None:
    def die() -> None:
        kept = shmpool.connect(address).share(np.ones(50_000), "orphan").get(copy=False)
        assert kept.all()
        os._exit(0)

    with pytest.raises(EOFError):
        as_user(MEMBER, die)
    assert not settle(lambda: query(address).active_buffers, 30)
