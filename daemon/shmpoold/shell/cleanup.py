"""Removing what nobody living owns: segments of pools whose broker was killed for good.

A pool is spared when a living broker has it locked, when a process maps or has open any of its
segments, when anybody holds the byte of a seat in it, or when processes that could map it
cannot be looked into. Locks are seen whatever pid namespace their holders are in, maps only in
this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from shmpool.protocol.header import SEATS_FILE, header_fault
from shmpool.protocol.names import PREFIX, header_name, lock_path, parse_pool_id
from shmpool.protocol.sizing import format_bytes
from shmpool.system.locks import FileLock
from shmpool.system.memory import SHM_DIR

from .segments import is_served, leftover_pools
from .untracked import unlink_segment

_MARK: Final = f"{SHM_DIR}/{PREFIX}"
_LARGEST_HEADER: Final = 1 << 20


@dataclass(slots=True)
class Users:
    """Which pools processes use, and how many processes could not be looked into."""

    pools: set[int]
    unreadable: int = 0


def clean_up(socket_path: str) -> Iterator[str]:
    """Remove leftovers; yields a line about each pool. The broker of *socket_path* cannot
    start meanwhile."""
    with _broker_kept_out(socket_path):
        pools = leftover_pools()
        users = _users()  # after the names were listed: whoever made one had it open by then
        if not pools:
            yield "there are no segments of shmpool on this host"
        for pool_id, names in pools.items():
            why = _spared(pool_id, names, users)
            yield f"pool {pool_id:016x}: kept, {why}" if why else f"pool {pool_id:016x}: {_remove(names)}"


@contextmanager
def _broker_kept_out(socket_path: str) -> Iterator[None]:
    """Hold the broker's lock if there is one to be had. A broker that holds it has its
    pool open, and is seen by that."""
    lock = FileLock(lock_path(socket_path))
    if os.path.exists(lock.path) and os.access(lock.path, os.W_OK):
        lock.try_acquire()
    try:
        yield
    finally:
        lock.release()


def _spared(pool_id: int, names: list[str], users: Users) -> str | None:
    """Why a pool must stay, or None."""
    if pool_id in users.pools:
        return "a living process has it open"
    if is_served(pool_id):
        return "a living broker serves it"
    try:
        if _has_living_seat(pool_id):
            return "a living process has a seat in it"
    except OSError as error:
        return f"it cannot be seen whether anybody has a seat in it ({error.filename}: {error.strerror})"
    if users.unreadable and _is_shared(names):
        return f"{users.unreadable} processes of other users cannot be looked into; run this as root"
    return None


def _remove(names: list[str]) -> str:
    nbytes = sum(_held_bytes(name) for name in names)
    failures = []
    for name in names:
        try:
            unlink_segment(name)
        except OSError as error:
            failures.append(f"{name} ({error.strerror})")
    if failures:
        return "cannot remove " + ", ".join(failures)
    return f"removed {len(names)} segments, {format_bytes(nbytes)}"


def _users() -> Users:
    users = Users(set())
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                users.pools |= _pools_of(f"/proc/{entry}")
            except PermissionError:
                users.unreadable += 1
            except OSError:
                pass  # it ended while we looked
    return users


def _pools_of(process: str) -> set[int]:
    """The pools whose segments a process has mapped or open."""
    with open(f"{process}/maps", encoding="utf-8", errors="replace") as file:
        paths = [line[line.index(_MARK) :] for line in file if _MARK in line]
    for number in os.listdir(f"{process}/fd"):
        try:
            paths.append(os.readlink(f"{process}/fd/{number}"))
        except FileNotFoundError:
            pass
    names = (path.removeprefix(SHM_DIR + "/").split()[0] for path in paths if path.startswith(_MARK))
    return {pool_id for name in names if (pool_id := parse_pool_id(name)) is not None}


def _has_living_seat(pool_id: int) -> bool:
    """By the locks on the seats file that the header names, and on the header itself; a damaged
    header has none. Raises OSError when it cannot be known."""
    try:
        with open(f"{SHM_DIR}/{header_name(pool_id)}", "rb") as file:
            raw = file.read(_LARGEST_HEADER)
            inodes = {os.fstat(file.fileno()).st_ino}
    except FileNotFoundError:
        return False
    words = memoryview(raw[: len(raw) // 8 * 8]).cast("Q")
    if header_fault(words) is None:
        inodes.add(words[SEATS_FILE + 1])
    return not inodes.isdisjoint(_locked_inodes())


def _locked_inodes() -> Iterator[int]:
    """The inodes that byte locks are held on, on this whole host. Their devices are not
    compared: layered file systems have several numbers for one."""
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            _, kind, *_, where, _, _ = line.replace("->", "").split()
            if kind == "OFDLCK":
                yield int(where.rsplit(":", 1)[1])


def _is_shared(names: list[str]) -> bool:
    """Whether users besides the owner may map it."""
    return any(status.st_mode & 0o060 for status in map(_status, names) if status)


def _held_bytes(name: str) -> int:
    status = _status(name)
    return status.st_blocks * 512 if status else 0


def _status(name: str) -> os.stat_result | None:
    try:
        return os.stat(f"{SHM_DIR}/{name}", follow_symlinks=False)
    except FileNotFoundError:
        return None
