"""What `shmpool doctor` checks of this host: facts are gathered by one function, judged by
another, so that every judgement can be tried with made-up facts.

Looks and changes nothing. A fact that cannot be had is said to be unknown, never taken
for good. Covers the host; a running broker's own state is `shmpool stats`'s.
"""

from __future__ import annotations

import glob
import os
import platform
import pwd
import re
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .._fast import WHY_PLAIN
from ..errors import BrokerUnavailable, ShmpoolError
from ..protocol.header import BROKER_PID, FIRST_SEAT, header_fault
from ..protocol.names import SHM_DIR, header_name, parse_pool_id
from ..protocol.sizing import format_bytes
from ..stats import Stats, query
from ..system.memory import Place, Pressure, Space, fitting_limit, memory_groups, pressure, shm_space
from .access import check_access
from .findings import Finding, Level
from .kernel import check_kernel
from .look import count, number

_LARGEST_HEADER: Final = 1 << 20
#: A broker's memory_limit that is told nothing.
_USUAL_LIMIT: Final = 256 << 20
#: Percent of the time that some task waits for memory, from which on a pool is slow.
_HARD_PRESSED: Final = 10.0
#: A client needs a descriptor for each tier and a few more; below this nothing is left.
_FEW_DESCRIPTORS: Final = 128
#: A broker has a socket and a pidfd for each client.
_DESCRIPTORS_A_CLIENT: Final = 2


def examine(limit: int | None, address: str) -> Iterator[Finding]:
    """Check everything, for a pool of *limit* bytes and a broker at *address*; None: for the pool of the
    broker that answers there, of whose memory what it holds is not missing."""
    held = 0
    if limit is None:
        limit, held = _pool_of(address)
    checks: tuple[Callable[[], Finding], ...] = (
        check_kernel,
        check_python,
        lambda: judge_shm(limit, look_at_shm(), held),
        lambda: judge_cgroups(limit - held, limited_groups()),
        check_huge_pages,
        lambda: judge_pressure(pressure(memory_groups())),
        check_remove_ipc,
        check_leftovers,
        lambda: judge_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        lambda: check_access(address),
        lambda: check_broker(address),
    )
    return (check() for check in checks)


# --- interpreter --------------------------------------------------------------------------------


def check_python() -> Finding:
    """Only CPython with the GIL: see the architecture."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    version = platform.python_version()
    return judge_python(sys.implementation.name, version, has_gil=has_gil, why_plain=WHY_PLAIN)


def judge_python(implementation: str, version: str, *, has_gil: bool, why_plain: str = "") -> Finding:
    """By name, version, whether the GIL is on, and why the hot paths are not compiled where they are not."""
    text = f"{implementation} {version}" + ("" if has_gil else " without the GIL")
    text += f", hot paths in plain Python: {why_plain}" if why_plain else ", hot paths compiled"
    if implementation != "cpython" or not has_gil:
        return Finding(Level.FAIL, "python", text, "use a CPython build with the GIL")
    return Finding(Level.OK, "python", text)


# --- memory --------------------------------------------------------------------------------------


def look_at_shm() -> Space | None:
    """/dev/shm's size, or None when there is none that can be written."""
    return shm_space() if os.access(SHM_DIR, os.W_OK | os.X_OK) else None


def _pool_of(address: str) -> tuple[int, int]:
    """The limit of the broker at *address* and what it holds; without one the usual limit."""
    try:
        memory = query(address, timeout=2.0).memory
    except ShmpoolError:
        return _USUAL_LIMIT, 0
    return memory["limit"], memory["held"]


def judge_shm(limit: int, space: Space | None, held: int = 0) -> Finding:
    """/dev/shm has to hold the whole pool, of which so much is *held* already."""
    if space is None:
        return Finding(Level.FAIL, "/dev/shm", "missing, or not writable", "mount a tmpfs there, mode 1777")
    if space.total == 0:
        return Finding(Level.OK, "/dev/shm", "has no size of its own")
    place = Place(SHM_DIR, *space)
    wanted = format_bytes(limit)
    text = f"{format_bytes(space.free)} free of {format_bytes(space.total)}, for a memory_limit of {wanted}"
    if held:
        text += f", {format_bytes(held)} of it held"
    if space.free < limit - held and not held:
        text += (
            f": shmpoold refuses that; shmpool.Broker() that is given no limit takes"
            f" {format_bytes(fitting_limit(limit, place))}"
        )
    fix = f"{place.fix(limit)}, or a lower memory_limit"
    if space.total < limit:
        return Finding(Level.FAIL, "/dev/shm", text, fix)
    if space.free < limit - held:
        return Finding(Level.WARN, "/dev/shm", text, f"see what fills it: ls -lS {SHM_DIR}; else {fix}")
    return Finding(Level.OK, "/dev/shm", text)


def check_huge_pages() -> Finding:
    """Whether /dev/shm has huge pages: by its mount, or by the kernel's own word for all."""
    mounts = _read("/proc/mounts").splitlines()
    options = next((line.split()[3] for line in reversed(mounts) if line.split()[1:2] == [SHM_DIR]), "")
    enabled = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"))
    return judge_huge_pages(options.split(","), enabled[1] if enabled else "")


def judge_huge_pages(options: list[str], enabled: str) -> Finding:
    """They are no must: copies of 4 MiB and more are 1.3 to 1.6 times as fast with them."""
    mounted = next((option for option in options if option.startswith("huge=")), "huge=never")
    if not enabled:
        return Finding(Level.OK, "huge pages", "this kernel has none for shared memory")
    if enabled == "force" or (enabled != "deny" and mounted != "huge=never"):
        return Finding(Level.OK, "huge pages", f"{SHM_DIR} has them ({mounted}; shmem_enabled {enabled})")
    text = f"none in {SHM_DIR} ({mounted}); with them copies of 4 MiB and more are 1.3 to 1.6 times as fast"
    return Finding(Level.OK, "huge pages", text, f"mount -o remount,huge=within_size {SHM_DIR}")


class Group(NamedTuple):
    """A cgroup that limits memory; in bytes."""

    path: str
    limit: int
    used: int


def limited_groups() -> list[Group]:
    """This process's cgroup and those above it, as far as they limit memory."""
    groups = [(group.path, group.limit(), group.usage()) for group in memory_groups()]
    return [Group(path, limit, used) for path, limit, used in groups if limit is not None and used is not None]


def judge_cgroups(limit: int, groups: list[Group]) -> Finding:
    """Over a cgroup's limit the kernel kills; the tightest one counts."""
    if not groups:
        return Finding(Level.OK, "cgroup", "no limit on memory")
    tightest = min(groups, key=lambda group: group.limit - group.used)
    text = f"{tightest.path} allows {format_bytes(tightest.limit)}, {format_bytes(tightest.used)} are used"
    fix = f"raise its memory limit by {format_bytes(limit)}, or set a lower memory_limit"
    if min(group.limit for group in groups) < limit:
        return Finding(Level.FAIL, "cgroup", text, fix)
    if tightest.limit - tightest.used < limit:
        return Finding(Level.WARN, "cgroup", f"{text} (caches included)", fix)
    return Finding(Level.OK, "cgroup", text)


def judge_pressure(pressure: Pressure | None) -> Finding:
    """By what the kernel says of tasks that wait for memory."""
    if pressure is None:
        return Finding(Level.OK, "pressure", "unknown: this kernel does not tell (PSI)")
    text = f"tasks waited for memory {pressure.some:g} % of the last 10 s, all of them {pressure.all:g} %"
    if pressure.some >= _HARD_PRESSED:
        return Finding(
            Level.WARN, "pressure", text, "give this host or cgroup more memory, or set a lower memory_limit"
        )
    return Finding(Level.OK, "pressure", text)


# --- who removes segments -----------------------------------------------------------------------


@dataclass(frozen=True)
class Login:
    """What decides whether logind deletes a user's segments at the last logout."""

    uid: int
    user: str
    logind_runs: bool
    remove_ipc: bool
    lingers: bool
    #: The highest uid of a system user.
    last_system_uid: int = 999


def check_remove_ipc() -> Finding:
    """Gather what `judge_remove_ipc` needs."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return judge_remove_ipc(
        Login(
            uid=uid,
            user=user,
            logind_runs=os.path.isdir("/run/systemd/seats"),
            remove_ipc=removes_ipc(_read_all(_logind_files())),
            lingers=os.path.exists(f"/var/lib/systemd/linger/{user}"),
        )
    )


def judge_remove_ipc(login: Login) -> Finding:
    """System users and lingering users are spared."""
    if not login.logind_runs:
        return Finding(Level.OK, "RemoveIPC", "no logind here")
    if login.uid <= login.last_system_uid:
        return Finding(Level.OK, "RemoveIPC", f"{login.user} is a system user, whom logind spares")
    if not login.remove_ipc:
        return Finding(Level.OK, "RemoveIPC", "switched off")
    if login.lingers:
        return Finding(Level.OK, "RemoveIPC", f"{login.user} lingers, so that no logout is the last")
    return Finding(
        Level.WARN,
        "RemoveIPC",
        f"logind deletes the segments of {login.user} at the last logout, while brokers run",
        f"run shmpoold as a system user, or `loginctl enable-linger {login.user}`, or RemoveIPC=no in logind.conf",
    )


def removes_ipc(texts: list[str]) -> bool:
    """Whether RemoveIPC is on, by the configuration's files in their order: on unless one
    says no, the last one decides."""
    values = re.findall(r"^[ \t]*RemoveIPC[ \t]*=[ \t]*(\S*)", "\n".join(texts), re.MULTILINE)
    return not values or values[-1].lower() not in ("no", "false", "off", "0", "n", "f")


def _logind_files() -> list[str]:
    """The main file, then the drop-ins by their names, as systemd reads them."""
    places = ("/usr/lib/systemd", "/run/systemd", "/etc/systemd")
    drop_ins = {os.path.basename(path): path for place in places for path in glob.glob(f"{place}/logind.conf.d/*.conf")}
    return ["/etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins))]


class Leftover(NamedTuple):
    """A pool without a broker; *nbytes* is what its segments hold, *owner* whose they are."""

    pool_id: int
    segments: int
    nbytes: int
    owner: str = ""


def check_leftovers() -> Finding:
    """Segments of pools whose broker is gone."""
    try:
        names = os.listdir(SHM_DIR)
    except OSError as error:
        return Finding(Level.WARN, "leftovers", f"unknown: {SHM_DIR}: {error.strerror}")
    pools: dict[int, list[str]] = {}
    for name in names:
        if (pool_id := parse_pool_id(name)) is not None:
            pools.setdefault(pool_id, []).append(name)
    alone = [
        Leftover(pool_id, len(segments), sum(map(_held, segments)), _owner(segments[0]))
        for pool_id, segments in pools.items()
        if not has_broker(pool_id)
    ]
    return judge_leftovers(len(pools), alone)


def judge_leftovers(pools: int, leftovers: list[Leftover]) -> Finding:
    """They may be a kept pool, waiting for its next broker, so it is no failure."""
    if not leftovers:
        return Finding(Level.OK, "leftovers", f"none ({_pools(pools)} here)" if pools else "none")
    nbytes = format_bytes(sum(leftover.nbytes for leftover in leftovers))
    named = ", ".join(f"{one.pool_id:016x}" + (f" ({one.owner}'s)" if one.owner else "") for one in leftovers)
    text = f"{nbytes} in {SHM_DIR} of pools without a broker in sight: {named}"
    return Finding(Level.WARN, "leftovers", text, "`shmpool doctor --clean` removes what nobody living owns")


def _pools(pools: int) -> str:
    return "1 pool with its broker" if pools == 1 else f"{number(pools)} pools, each with its broker,"


def has_broker(pool_id: int) -> bool:
    """Whether the broker that the pool's header names has the pool mapped. True when that
    cannot be told, because header or process are another user's."""
    name = header_name(pool_id)
    try:
        with open(f"{SHM_DIR}/{name}", "rb") as file:
            raw = file.read(_LARGEST_HEADER)
    except PermissionError:
        return True
    except OSError:
        return False
    words = memoryview(raw[: len(raw) // 8 * 8]).cast("Q")
    if len(words) < FIRST_SEAT or header_fault(words) is not None:
        return False
    try:
        with open(f"/proc/{words[BROKER_PID]}/maps", encoding="utf-8", errors="replace") as maps:
            return name in maps.read()
    except PermissionError:
        return True
    except OSError:
        return False


def _owner(name: str) -> str:
    try:
        uid = os.stat(f"{SHM_DIR}/{name}", follow_symlinks=False).st_uid
        return pwd.getpwuid(uid).pw_name
    except OSError:
        return ""
    except KeyError:
        return str(uid)


def _held(name: str) -> int:
    try:
        return os.stat(f"{SHM_DIR}/{name}", follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


# --- the rest -------------------------------------------------------------------------------------


def judge_descriptors(soft: int) -> Finding:
    """By the soft limit on open files."""
    if soft == resource.RLIM_INFINITY:
        return Finding(Level.OK, "open files", "no limit")
    clients = max(0, soft - _FEW_DESCRIPTORS) // _DESCRIPTORS_A_CLIENT
    text = f"{number(soft)} a process; a broker started here serves about {count(clients, 'client')}"
    if soft < _FEW_DESCRIPTORS:
        return Finding(Level.FAIL, "open files", text, "ulimit -n 1024")
    if soft < 1024:
        return Finding(Level.WARN, "open files", text, "ulimit -n 4096 (systemd: LimitNOFILE)")
    return Finding(Level.OK, "open files", text)


def check_broker(address: str) -> Finding:
    """Whether one answers; none need run."""
    if not os.path.exists(address):
        return Finding(Level.OK, "broker", f"none at {address}; shmpool.Broker() and `shmpool run` bring their own")
    try:
        return judge_broker(address, query(address, timeout=2.0))
    except BrokerUnavailable as error:
        return Finding(Level.FAIL, "broker", str(error), f"restart it, or remove {address} if nothing serves it")
    except ShmpoolError as error:
        return Finding(Level.FAIL, "broker", str(error), "install the same version on both sides")


def judge_broker(address: str, stats: Stats) -> Finding:
    """By its own alerts."""
    text = f"answers at {address}, {count(len(stats.clients), 'client')}"
    if shared := stats.shared["publications"]:
        text += f", {count(shared, 'shared publication')} with {count(stats.shared['holds'], 'hold')}"
        if queues := stats.shared["queues"]:
            text += f", {count(queues, 'queue')} among them"
    if stats.alerts:
        return Finding(
            Level.WARN, "broker", f"{text}; {'; '.join(stats.alerts)}", "see `shmpool stats` and `shmpool leases`"
        )
    return Finding(Level.OK, "broker", text)


def _read_all(paths: list[str]) -> list[str]:
    return [_read(path) for path in paths]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
