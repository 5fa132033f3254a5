"""How much memory this host would still give, and how hard it is pressed: the one reader of
/dev/shm's size, the cgroups' limits and the kernel's pressure figures (PSI).

Over a cgroup's limit `posix_fallocate` does not fail, it gets the process killed; so who
reserves pages asks here first: the broker for slots, a client for direct segments, since
pages are charged to who reserves them. The figures are a moment's: others allocate too, and
only the kernel knows for certain. What cannot be read is unknown (None), never taken for zero.
"""

from __future__ import annotations

import errno
import os

from ..protocol.frozen import NamedTuple
from ..protocol.names import SHM_DIR
from ..protocol.sizing import KIB, MIB, format_bytes
from .descriptors import open_owned
from .importing import door, explained
from .outside import exists, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

#: Left free in a cgroup, for the process's own growth and the kernel's batching.
MARGIN: Final = 2 * MIB
#: Version 1 writes a number about this large for "no limit".
_NO_LIMIT: Final = 1 << 60


class MemoryGroup(NamedTuple):
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

    def usage(self) -> int | None:
        """Bytes charged to it, caches included."""
        text = _read(self.path, self.usage_file)
        return int(text) if text.isdecimal() else None

    def room(self) -> int | None:
        """Bytes that may still be charged to it, None without a limit."""
        limit = self.limit()
        usage = None if limit is None else self.usage()
        if limit is None or usage is None:
            return None
        return limit - usage + self._reclaimable_bytes() - MARGIN

    def _reclaimable_bytes(self) -> int:
        lines = (line.split() for line in _read(self.path, "memory.stat").splitlines())
        return sum(int(value) for key, value in lines if key in self.reclaimable)


def memory_groups(proc: str = "/proc") -> list[MemoryGroup]:
    """This process's cgroup and those above it, as far as they can be limited; none where
    *proc* does not say."""
    try:
        with open(f"{proc}/self/cgroup", encoding="utf-8") as file:
            entries = [line.rstrip("\n").split(":", 2) for line in file]
    except own(OSError):
        return []
    groups: list[MemoryGroup] = []
    for _, controllers, inner in entries:
        if controllers == "":
            groups += _lineage(_mount_of("cgroup2", proc), inner, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount = _mount_of("memory", proc)
            groups += _lineage(mount, inner, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    return groups


class Space(NamedTuple):
    """Of a file system, in bytes. *total* is 0 for a tmpfs without a size."""

    total: int
    free: int


def shm_space() -> Space:
    """/dev/shm's. Raises OSError where there is none."""
    status = os.statvfs(SHM_DIR)
    return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


def shm_free() -> int | None:
    """Free bytes of /dev/shm, None when it has no size."""
    space = shm_space()
    return space.free if space.total else None


class Place(NamedTuple):
    """What bounds the memory that a pool can have: /dev/shm, a cgroup, or the host itself. In bytes;
    *free* of a cgroup counts the file pages that the kernel would take back."""

    name: str
    total: int
    free: int

    @property
    def is_shm(self) -> bool:
        """Whether it is /dev/shm, where only what is in it counts."""
        return self.name == SHM_DIR

    def __str__(self) -> str:
        return f"{self.name} has {format_bytes(max(0, self.free))} free of {format_bytes(self.total)}"

    def fix(self, limit: int) -> str:
        """What makes room for a pool of *limit* bytes here."""
        if self.is_shm:
            return f"mount -o remount,size={-(-2 * limit // MIB)}M {SHM_DIR} (containers: --shm-size)"
        return f"raise its memory limit by {format_bytes(limit - max(0, self.free))}"


def limiting_places(groups: list[MemoryGroup]) -> list[Place]:
    """Where a pool's memory is bounded: /dev/shm if it has a size, and the *groups* that have a limit.
    Raises OSError where there is no /dev/shm."""
    space = shm_space()
    places = [Place(SHM_DIR, *space)] if space.total else []
    for group in groups:
        limit, room = group.limit(), group.room()
        if limit is not None and room is not None:
            places.append(Place(f"the cgroup {group.path}", limit, room))
    return places


def host(proc: str = "/proc") -> Place | None:
    """The host's memory, and what of it the kernel thinks available; None where it does not say."""
    with door, explained:
        import re  # brokers and commands only: a worker need not have it

    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", _read(proc, "meminfo"), re.MULTILINE))
    if len(found) < 2:
        return None
    return Place("the host's memory", int(found["MemTotal"]) * KIB, int(found["MemAvailable"]) * KIB)


def most_memory() -> int:
    """What there is for pools on this host, in bytes, whoever has it now: the smaller of /dev/shm's
    size and the tightest cgroup's limit; the host's memory where neither has one. Raises OSError."""
    places = limiting_places(memory_groups()) or [place for place in [host()] if place is not None]
    if not places:
        raise OSError(errno.ENOTSUP, "neither /dev/shm nor a cgroup nor /proc/meminfo says how much memory there is")
    return min(place.total for place in places)


def tightest_place(places: list[Place]) -> Place | None:
    """Where there is least left."""
    return min(places, key=_free, default=None)


def _free(place: Place) -> int:
    return place.free


def fitting_limit(limit: int, place: Place | None) -> int:
    """*limit*, or as many whole MiB of it as there is room for."""
    return limit if place is None or place.free >= limit else max(0, place.free) // MIB * MIB


class Pressure(NamedTuple):
    """How much of the last ten seconds *some* task, or *all* that could run, waited for memory,
    in percent; *stalled_us* counts on, in microseconds, for *some*."""

    some: float
    all: float
    stalled_us: int


def pressure(groups: list[MemoryGroup], proc: str = "/proc") -> Pressure | None:
    """The pressure of the innermost of *groups* that tells, else the host's; None where the
    kernel does not say."""
    with door, explained:
        import re

    places = [(group.path, "memory.pressure") for group in groups]
    for path, name in [*places, (f"{proc}/pressure", "memory")]:
        found = re.search(_PRESSURE, _read(path, name))
        if found:
            return Pressure(float(found[1]), float(found[3] or 0), int(found[2]))
    return None


#: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0`` and the same for *full*, if there is that.
_PRESSURE: Final = r"some avg10=([\d.]+).* total=(\d+)(?:\nfull avg10=([\d.]+))?"


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


def _lineage(mount: tuple[str, str] | None, inner: str, limit: str, usage: str, prefix: str) -> Iterator[MemoryGroup]:
    """The groups from *inner* up to the mount's root that have a limit file."""
    if mount is None:
        return
    root, point = mount
    if root != "/":  # a container's, mounted as if it were all
        inner = inner.removeprefix(root) if f"{inner}/".startswith(f"{root}/") else "/"
    while True:
        path = point + inner.rstrip("/")
        if exists(f"{path}/{limit}"):
            yield MemoryGroup(path, limit, usage, (prefix + "inactive_file", prefix + "active_file"))
        if inner in ("/", ""):
            return
        inner = os.path.dirname(inner)


def _mount_of(kind: str, proc: str) -> tuple[str, str] | None:
    """(root, mount point) of the cgroup2 file system or of a version-1 controller."""
    try:
        with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = file.readlines()
    except own(OSError):
        return None
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        fstype, _, options = after.split()[:3]
        if fstype == kind or (fstype == "cgroup" and kind in options.split(",")):
            return root, point
    return None


def _read(path: str, name: str) -> str:
    """A small kernel file; read before pages are reserved, so without Python's file objects."""
    try:
        fd = open_owned(os.open, f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        return os.read(int(fd), 16 * KIB).decode("ascii", "replace").strip()
    except own(OSError):
        return ""
