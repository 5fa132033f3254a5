"""How much memory the host would still give: /dev/shm's free space and the cgroup's.

Over a cgroup's limit `posix_fallocate` does not fail, it gets the process killed; so the
broker asks here first. The figures are a moment's: others allocate too, and only the
kernel knows for certain.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shmpool.protocol.sizing import KIB, MIB, format_bytes

from .untracked import SHM_DIR

#: Left free in a cgroup, for the process's own growth and the kernel's batching.
MARGIN: Final = 2 * MIB
#: Version 1 writes a number about this large for "no limit".
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The memory controller's files of one cgroup, of version 1 or 2."""

    path: str
    limit_file: str
    usage_file: str
    #: Keys of memory.stat for file pages, which the kernel takes back before it kills.
    reclaimable: tuple[str, ...]

    def limit(self) -> int | None:
        """Its limit in bytes, None when it has none."""
        text = _read(self.path, self.limit_file)
        limit = int(text) if text.isdecimal() else _NO_LIMIT
        return None if limit >= _NO_LIMIT else limit

    def room(self) -> int | None:
        """Bytes that may still be charged to it, None without a limit."""
        limit, usage = self.limit(), _read(self.path, self.usage_file)
        if limit is None or not usage.isdecimal():
            return None
        return limit - int(usage) + self._reclaimable_bytes() - MARGIN

    def _reclaimable_bytes(self) -> int:
        lines = (line.split() for line in _read(self.path, "memory.stat").splitlines())
        return sum(int(value) for key, value in lines if key in self.reclaimable)


def memory_groups() -> list[MemoryGroup]:
    """This process's cgroup and those above it, as far as they can be limited."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        entries = [line.rstrip("\n").split(":", 2) for line in file]
    groups: list[MemoryGroup] = []
    for _, controllers, inner in entries:
        if controllers == "":
            groups += _lineage("cgroup2", inner, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            groups += _lineage("memory", inner, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    return groups


def shm_free() -> int | None:
    """Free bytes of /dev/shm, None when it has no size."""
    status = os.statvfs(SHM_DIR)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def require(nbytes: int, groups: list[MemoryGroup]) -> None:
    """Raise OSError(ENOSPC), with the numbers, when *nbytes* more would not fit."""
    free = shm_free()
    if free is not None and free < nbytes:
        raise no_space(nbytes, f"{SHM_DIR} has {format_bytes(free)} free")
    for group in groups:
        room = group.room()
        if room is not None and room < nbytes:
            raise no_space(
                nbytes,
                f"the cgroup {group.path} has {format_bytes(max(0, room))} left"
                f" under its limit of {format_bytes(group.limit() or 0)}",
            )


def no_space(nbytes: int, because: str) -> OSError:
    """An ENOSPC that says what was wanted and what there is."""
    return OSError(errno.ENOSPC, f"no room for {format_bytes(nbytes)}: {because}")


def _lineage(kind: str, inner: str, limit: str, usage: str, prefix: str) -> Iterator[MemoryGroup]:
    """The groups from *inner* up to the mount's root that have a limit file."""
    mount = _mount_of(kind)
    if mount is None:
        return
    root, point = mount
    inner = inner if root == "/" else inner.removeprefix(root) or "/"
    while True:
        path = point + inner.rstrip("/")
        if os.path.exists(f"{path}/{limit}"):
            yield MemoryGroup(path, limit, usage, (prefix + "inactive_file", prefix + "active_file"))
        if inner in ("/", ""):
            return
        inner = os.path.dirname(inner)


def _mount_of(kind: str) -> tuple[str, str] | None:
    """(root, mount point) of the cgroup2 file system or of a version-1 controller."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            root, point = before.split()[3:5]
            fstype, _, options = after.split()[:3]
            if fstype == kind or (fstype == "cgroup" and kind in options.split(",")):
                return root, point
    return None


def _read(path: str, name: str) -> str:
    """A small kernel file; read before every warming, so without Python's file objects."""
    try:
        fd = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 16 * KIB).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
