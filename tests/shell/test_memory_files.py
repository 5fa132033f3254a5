"""The reader of the host's memory on recorded files: cgroups of both versions as hosts and containers have them,
PSI of several kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmpool.protocol.sizing import KIB, MIB
from shmpool.system.memory import MARGIN, Pressure, host, memory_groups, pressure

NO_LIMIT_OF_V1 = "9223372036854771712"
#: Of a Debian host with systemd, and of Docker with a namespace of cgroups; of an older Docker, whose container
#: sees itself mounted as the root; of version 1, on the host and in a container; of a host that has both.
CGROUP2_HOST = "30 23 0:26 / {point} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CGROUP2_ROOTED = "31 23 0:26 {root} {point} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw\n"
V1_HOST = "36 30 0:32 / {point} rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,memory\n"
V1_ROOTED = "1044 1036 0:32 {root} {point} ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,memory\n"
OTHER = (
    "23 28 0:21 / /proc rw,relatime shared:13 - proc proc rw\n"
    "41 30 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


class Host:
    """A tree of recorded files below a folder."""

    def __init__(self, root: Path) -> None:
        self.proc, self.point = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.point.mkdir()
        (self.proc / "pressure").mkdir()

    def record(self, cgroup: str, mounts: str, root: str = "/") -> None:
        (self.proc / "self/cgroup").write_text(cgroup)
        (self.proc / "self/mountinfo").write_text(OTHER + mounts.format(point=self.point, root=root))

    def group(self, path: str, **files: object) -> None:
        folder = self.point / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / f"memory.{name}").write_text(f"{content}\n")

    def rooms(self) -> list[tuple[str, int | None, int | None]]:
        """By group, innermost first: its path below the mount, its limit and its room."""
        groups = memory_groups(str(self.proc))
        return [(one.path.removeprefix(str(self.point)) or "/", one.limit(), one.room()) for one in groups]


@pytest.fixture
def here(tmp_path: Path) -> Host:
    return Host(tmp_path)


STAT2 = f"anon 1\nfile {9 * MIB}\nshmem {4 * MIB}\ninactive_file {3 * MIB}\nactive_file {2 * MIB}\nslab 1"
STAT1 = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {3 * MIB}\ntotal_active_file {2 * MIB}"


def test_version_2_of_a_host_is_read_up_to_the_root(here: Host) -> None:
    here.record("0::/system.slice/shmpoold.service\n", CGROUP2_HOST)
    here.group("/system.slice/shmpoold.service", max=100 * MIB, current=30 * MIB, stat=STAT2)
    here.group("/system.slice", max="max", current=60 * MIB, stat=STAT2)
    here.group("/", stat=STAT2)  # the root has no limit
    room = 100 * MIB - 30 * MIB + 5 * MIB - MARGIN  # what is in files, shared memory aside, would go first
    assert here.rooms() == [("/system.slice/shmpoold.service", 100 * MIB, room), ("/system.slice", None, None)]


def test_version_2_in_a_container_is_its_own_root(here: Host) -> None:
    here.record("0::/\n", CGROUP2_HOST)
    here.group("/", max=64 * MIB, current=10 * MIB, stat="inactive_file 0\nactive_file 0")
    assert here.rooms() == [("/", 64 * MIB, 54 * MIB - MARGIN)]


@pytest.mark.parametrize("inner", ["/docker/abc", "/docker/abc/below"])
def test_a_container_whose_part_is_mounted_as_the_root_finds_itself_there(here: Host, inner: str) -> None:
    here.record(f"0::{inner}\n", CGROUP2_ROOTED, root="/docker/abc")
    here.group("/", max=64 * MIB, current=0, stat="")
    here.group("/below", max=32 * MIB, current=0, stat="")
    below = [("/below", 32 * MIB, 32 * MIB - MARGIN)] if inner.endswith("below") else []
    assert here.rooms() == [*below, ("/", 64 * MIB, 64 * MIB - MARGIN)]


def test_a_group_whose_name_only_begins_like_the_mounted_one_is_not_below_it(here: Host) -> None:
    here.record("0::/docker/abcdef\n", CGROUP2_ROOTED, root="/docker/abc")
    here.group("/", max=64 * MIB, current=0, stat="")
    (here.point.parent / "cgroupdef").mkdir()
    (here.point.parent / "cgroupdef" / "memory.max").write_text("1")
    assert here.rooms() == [("/", 64 * MIB, 64 * MIB - MARGIN)]


def test_version_1_of_a_host_and_in_a_container(here: Host) -> None:
    lines = "11:cpu,cpuacct:/other\n4:memory:/docker/abc\n1:name=systemd:/\n0::/\n"
    here.record(lines, V1_HOST)
    here.group("/docker/abc", limit_in_bytes=100 * MIB, usage_in_bytes=40 * MIB, stat=STAT1)
    here.group("/docker", limit_in_bytes=NO_LIMIT_OF_V1, usage_in_bytes=80 * MIB, stat=STAT1)
    here.group("/", limit_in_bytes=NO_LIMIT_OF_V1, usage_in_bytes=90 * MIB, stat=STAT1)
    room = 60 * MIB + 5 * MIB - MARGIN
    assert here.rooms() == [("/docker/abc", 100 * MIB, room), ("/docker", None, None), ("/", None, None)]
    here.record(lines, V1_ROOTED, root="/docker/abc")
    here.group("/", limit_in_bytes=50 * MIB, usage_in_bytes=0, stat="")
    assert here.rooms() == [("/", 50 * MIB, 50 * MIB - MARGIN)]


def test_a_host_with_both_versions_has_memory_in_the_one_that_has_its_controller(here: Host) -> None:
    unified = "42 32 0:38 / /nowhere/unified rw,relatime - cgroup2 cgroup2 rw\n"
    here.record("4:memory:/a\n0::/system.slice/b\n", V1_HOST + unified)
    here.group("/a", limit_in_bytes=10 * MIB, usage_in_bytes=0, stat="")
    assert here.rooms() == [("/a", 10 * MIB, 10 * MIB - MARGIN)]


@pytest.mark.parametrize("text", ["", "max", "gibberish", NO_LIMIT_OF_V1])
def test_what_is_no_limit_is_none(here: Host, text: str) -> None:
    here.record("0::/\n", CGROUP2_HOST)
    here.group("/", max=text, current=1, stat="")
    assert here.rooms() == [("/", None, None)]


def test_a_use_that_cannot_be_read_is_unknown_and_not_zero(here: Host) -> None:
    here.record("0::/\n", CGROUP2_HOST)
    here.group("/", max=10 * MIB, stat="")
    assert here.rooms() == [("/", 10 * MIB, None)]


def test_without_cgroups_there_are_no_groups(here: Host) -> None:
    assert here.rooms() == []
    here.record("0::/a\n", "")
    assert here.rooms() == []


SOME = "some avg10=12.34 avg60=5.00 avg300=1.00 total=312312839\n"
FULL = "full avg10=1.20 avg60=0.00 avg300=0.00 total=256277102\n"


def test_pressure_is_of_the_innermost_group_that_tells_else_of_the_host(here: Host) -> None:
    here.record("0::/a/b\n", CGROUP2_HOST)
    here.group("/a/b", max="max")
    here.group("/a", max="max", pressure=SOME + FULL)
    (here.proc / "pressure/memory").write_text("some avg10=99.00 avg60=0.00 avg300=0.00 total=7\n")
    groups = memory_groups(str(here.proc))
    assert pressure(groups, str(here.proc)) == Pressure(12.34, 1.2, 312312839)
    assert pressure([], str(here.proc)) == Pressure(99.0, 0.0, 7)  # before Linux 5.13 some have no second line


def test_a_kernel_without_pressure_figures_says_nothing(here: Host) -> None:
    assert pressure([], str(here.proc)) is None


def test_the_host_s_memory_is_what_the_kernel_thinks_available(here: Host) -> None:
    lines = "MemTotal:       49392232 kB\nMemFree:        1024 kB\nMemAvailable:   45892232 kB\nBuffers: 12 kB\n"
    (here.proc / "meminfo").write_text(lines)
    place = host(str(here.proc))
    assert place is not None
    assert (place.total, place.free) == (49392232 * KIB, 45892232 * KIB)
    (here.proc / "meminfo").write_text("MemTotal: 1 kB\n")
    assert host(str(here.proc)) is None
