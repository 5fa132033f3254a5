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

from shmpool.protocol.header import END_OF_FACTS, SEATS_FILE, header_bytes
from shmpool.protocol.names import PREFIX, SHM_DIR, header_name, lock_path, parse_pool_id, seats_path
from shmpool.protocol.sizing import format_bytes
from shmpool.system.locks import TO_THE_END, FileId, FileLock, any_locked, pool_id_in

from .leftovers import is_served, leftover_pools
from .untracked import unlink_segment

_MARK: Final = f"{SHM_DIR}/{PREFIX}"


@dataclass(slots=True)
class Users:
    """Which pools processes use, and how many processes could not be looked into."""

    pools: set[int]
    unreadable: int = 0


def clean_up(socket_path: str, *, dry_run: bool = False) -> Iterator[str]:
    """Remove leftovers; yields a line about each pool. The broker of *socket_path* cannot
    start meanwhile. *dry_run*: only say what would be removed."""
    with _broker_kept_out(socket_path):
        pools = leftover_pools()
        users = _users()  # after the names were listed: whoever made one had it open by then
        if not pools:
            yield "there are no segments of shmpool on this host"
        for pool_id, names in pools.items():
            why = _spared(pool_id, names, users, socket_path)
            yield f"pool {pool_id:016x}: " + (f"kept, {why}" if why else (_promise if dry_run else _remove)(names))


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


def _spared(pool_id: int, names: list[str], users: Users, socket_path: str) -> str | None:
    """Why a pool must stay, or None."""
    if pool_id in users.pools:
        return "a living process has it open"
    try:
        if is_served(pool_id):
            return "a living broker serves it"
        if _has_living_seat(pool_id, socket_path):
            return "a living process has a seat in it"
    except FileNotFoundError:
        pass  # no header, or no seats file
    except OSError as error:
        return f"it cannot be seen whether anybody uses it ({error.filename}: {error.strerror})"
    if users.unreadable and _is_shared(names):
        return f"{users.unreadable} processes of other users cannot be looked into; run this as root"
    return None


def _promise(names: list[str]) -> str:
    return f"would remove {len(names)} segments, {format_bytes(sum(map(_held_bytes, names)))}"


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


def _has_living_seat(pool_id: int, socket_path: str) -> bool:
    """By the locks that its clients have on the header, wherever they run, and on the seats file
    if it is the one beside the socket."""
    fd = os.open(f"{SHM_DIR}/{header_name(pool_id)}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as header:
        if any_locked(fd, 0, TO_THE_END) >= 0:
            return True
        raw = header.read(header_bytes(0))
    words = memoryview(raw[: len(raw) // 8 * 8]).cast("Q").tolist()
    if len(words) < END_OF_FACTS:
        return False
    expected = FileId(*words[SEATS_FILE : SEATS_FILE + 2])
    fd = os.open(seats_path(socket_path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb"):
        return FileId.of(fd) == expected and pool_id_in(fd) == pool_id and any_locked(fd, 0, TO_THE_END) >= 0


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
