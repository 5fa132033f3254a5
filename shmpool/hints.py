"""What to do about a broker that cannot be reached, fitted to why: looked up when it has failed."""

from __future__ import annotations

import errno
import os
import stat

from .addresses import MAX_PATH, own_socket
from .protocol.names import SHM_DIR
from .system.importing import door, explained
from .system.limits import explain
from .system.outside import exists, own

_WITHOUT = "or run this command under `shmpool run -- …`, or use shmpool.Broker() or connect(autostart=True)"


def unreachable(address: str, error: OSError) -> str:
    """Why nobody answers at an address, and what to do."""
    said = f"no broker answers at {address}: {explain(error)}"
    if len(os.fsencode(address)) > MAX_PATH:
        return f"{said}; a socket's path has at most {MAX_PATH} bytes, this one has {len(os.fsencode(address))}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{said}; {_who_may(address)}"
    if error.errno == errno.ENOENT:
        return f"{said}. Start one with {_start_command(address)}, {_WITHOUT}"
    try:
        mode = os.stat(address).st_mode
    except own(OSError):
        mode = stat.S_IFSOCK
    if not stat.S_ISSOCK(mode):
        return f"{said}; it is no socket: name the one that `shmpoold` serves"
    if error.errno == errno.ECONNREFUSED:
        return f"{said}; its broker has ended. Start it again with {_start_command(address)}, {_WITHOUT}"
    return said


def unmappable(address: str, error: OSError) -> str:
    """Why the pool of a broker that has just welcomed us cannot be mapped, and what to do."""
    said = f"the pool of the broker at {address} cannot be mapped: {explain(error)}"
    if isinstance(error, FileNotFoundError):
        where = f": {error.filename} is not here" if error.filename else ""  # of a segment, that is said already
        return (
            f"{said}{where}. Unless that was just now, this process has another {SHM_DIR} than the broker"
            " (a container's own?) or does not see its socket's directory: share both (docker: --ipc, --volume)"
        )
    if isinstance(error, PermissionError):
        return f"{said}; {_who_may(error.filename)}"
    return said


def _start_command(address: str) -> str:
    """A command that this user may run, and whose broker is then found."""
    directory = os.path.dirname(os.path.abspath(address))
    while not exists(directory):
        directory = os.path.dirname(directory)
    if os.access(directory, os.W_OK | os.X_OK):
        return f"`shmpoold --socket {address}`"
    # Not ours to make; without --socket it serves a path of this user's, where connect() looks too.
    return f"`systemctl start shmpoold` as root, or your own with `shmpoold` (it serves {own_socket()})"


def first_barred(path: str) -> str:
    """The first on the way to a file, or the file itself, that we may not use; empty when there is none."""
    steps = [path]
    while os.path.dirname(steps[-1]) != steps[-1]:
        steps.append(os.path.dirname(steps[-1]))
    for step in reversed(steps):
        try:
            status = os.stat(step)
        except own(OSError):
            return ""
        if not os.access(step, _needed(step, path, status), effective_ids=True):
            return step
    return ""


def _needed(step: str, path: str, status: os.stat_result) -> int:
    return os.X_OK if stat.S_ISDIR(status.st_mode) and step != path else os.R_OK | os.W_OK


def _who_may(path: str) -> str:
    """Whose a file is that we may not open, and who else may: the first on the way to it."""
    step = first_barred(path)
    if not step:
        return "ask who runs that broker for its group"
    status = os.stat(step)
    needed = _needed(step, path, status)
    user, group = user_name(status.st_uid), group_name(status.st_gid)
    if status.st_mode >> 3 & needed == needed:  # the group's
        me = user_name(os.geteuid())
        return f"{step} is for the group {group}: `usermod -aG {group} {me}` and log in anew, or run as {user}"
    return f"{step} is {user}'s alone: set `group` in that broker's configuration to one of yours, or run as {user}"


def user_name(uid: int) -> str:
    """For people."""
    with door, explained:
        import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except own(KeyError):
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """For people."""
    with door, explained:
        import grp

    try:
        return grp.getgrgid(gid).gr_name
    except own(KeyError):
        return f"gid {gid}"
