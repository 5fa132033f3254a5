"""What `shmpool doctor` asks of the kernel: each feature that broker or clients use is tried, not
derived from a version: a container's seccomp profile, or a sandbox with a kernel of its own, may refuse
what the version has.

Tried on anonymous memory and on files without a name, which are of /dev/shm's kind; nothing is left.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from ..errors import ShmpoolError
from ..system import futex
from ..system.libc import address_of, needs_barrier, punch, register_barrier
from ..system.locks import F_OFD_SETLK, lock_bytes
from ..system.processes import SO_PEERPIDFD
from .findings import Finding, Level

_MADV_WIPEONFORK: Final = 18
_MADV_POPULATE_READ: Final = 22


class Feature(NamedTuple):
    """One that is used; *without* says what is so where it is missing, *since* from which Linux on it is there.
    *attempt* raises what the kernel says."""

    name: str
    since: str
    attempt: Callable[[], None]
    without: str
    is_needed: bool = True


def check_kernel() -> Finding:
    """Try all that are used here."""
    return judge_kernel(f"Linux {platform.release()} on {platform.machine()}", _missing(), _names())


def judge_kernel(host: str, missing: list[tuple[Feature, str]], names: list[str]) -> Finding:
    """By what is *missing*, and why; *names* are all that were tried."""
    if not missing:
        return Finding(Level.OK, "kernel", f"{host} has all that is used: {', '.join(names)}")
    told = "; ".join(f"no {feature.name} ({why}): {feature.without}" for feature, why in missing)
    needed = [feature for feature, _ in missing if feature.is_needed]
    if not needed:
        return Finding(Level.OK, "kernel", f"{host} has all that is needed; {told}")
    newest = max((feature.since for feature in needed), key=lambda since: tuple(map(int, since.split("."))))
    fix = f"use Linux {newest} or later"
    if any(why != os.strerror(errno.ENOSYS) for feature, why in missing if feature.is_needed):
        fix += "; in a container, let its seccomp profile allow these calls"
    return Finding(Level.FAIL, "kernel", f"{host}: {told}", fix)


def _missing() -> list[tuple[Feature, str]]:
    found = []
    for feature in _features():
        try:
            feature.attempt()
        except OSError as error:
            found.append((feature, error.strerror or str(error)))
        except (ShmpoolError, NotImplementedError) as error:
            found.append((feature, str(error)))
    return found


def _names() -> list[str]:
    return [feature.name for feature in _features()]


def _features() -> tuple[Feature, ...]:
    barrier = Feature(
        "membarrier", "4.14", register_barrier, "other processors than x86 need it for the order of stores"
    )
    return (
        Feature("pidfd_open", "5.3", _pidfd, "nobody sees for certain that a process has ended"),
        Feature("OFD locks", "3.15", _lock, "no ticket can be taken"),
        Feature("fallocate", "3.5", _fallocate, "memory cannot be reserved before it is granted"),
        Feature("MADV_REMOVE", "2.6.16", _remove, "idle memory cannot be given back"),
        Feature("MADV_WIPEONFORK", "4.14", _wipe, "a forked child takes its parent's leases for its own"),
        Feature("futex", "2.6", _futex, "streams and queues cannot wait"),
        *((barrier,) if needs_barrier() else ()),
        Feature("MADV_POPULATE_READ", "5.14", _populate, "a first touch costs a fault for each page", is_needed=False),
        Feature("SO_PEERPIDFD", "6.5", _peer, "who ends while it connects is found a little later", is_needed=False),
    )


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


@contextmanager
def _file() -> Iterator[int]:
    fd = os.memfd_create("shmpool-doctor", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        yield fd
    finally:
        os.close(fd)


def _lock() -> None:
    with _file() as fd:
        fcntl.fcntl(fd, F_OFD_SETLK, lock_bytes(1))


def _fallocate() -> None:
    with _file() as fd:
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        if not os.fstat(fd).st_blocks:
            raise OSError(errno.EOPNOTSUPP, "it reserves nothing")
        punch(fd, 0, mmap.PAGESIZE)
        if os.fstat(fd).st_blocks:
            raise OSError(errno.EOPNOTSUPP, "it gives nothing back")


def _remove() -> None:
    with _file() as fd, mmap.mmap(fd, mmap.PAGESIZE) as page:
        page[0] = 1
        page.madvise(mmap.MADV_REMOVE)
        if page[0] or not os.fstat(fd).st_size:
            raise OSError(errno.EOPNOTSUPP, "it gives nothing back")


def _wipe() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page.madvise(_MADV_WIPEONFORK)


def _populate() -> None:
    with _file() as fd, mmap.mmap(fd, mmap.PAGESIZE) as page:
        page.madvise(_MADV_POPULATE_READ)


def _futex() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        woken = futex.wake(address_of(page))
    if woken < 0:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _peer() -> None:
    one, other = socket.socketpair()
    with one, other:
        raw = one.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        os.close(int.from_bytes(raw, "little" if os.uname().machine != "s390x" else "big"))
