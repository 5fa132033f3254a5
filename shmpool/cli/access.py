"""What `shmpool doctor` says of permissions and groups: may this user reach the broker's socket and what
lies beside it, and if not, is it the user, the session or the file that has to change?
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import Final, NamedTuple

from ..addresses import own_socket
from ..hints import first_barred, group_name, user_name
from ..protocol.names import seats_path, tickets_path
from .findings import Finding, Level

#: How what another user namespace does not map looks from here.
_OVERFLOW: Final = "/proc/sys/kernel/overflowuid"


class Access(NamedTuple):
    """Who may use a socket, and whether we may. *barred* is the first of its folders, itself and the files
    beside it that we may not use; *owner*, *group* and *mode* are that one's, else the socket's."""

    path: str
    me: str
    owner: str
    group: str
    mode: int
    barred: str = ""
    #: We are a member by the user database; this process, which got its groups when its session began, is.
    is_member: bool = False
    is_member_now: bool = False
    #: Its owner has no number in this user namespace.
    is_unmapped: bool = False


def check_access(address: str) -> Finding:
    """Gather what `judge_access` needs."""
    try:
        os.lstat(address)
    except FileNotFoundError:
        return Finding(Level.OK, "access", f"no socket at {address}; your own broker would serve {own_socket()}, 0600")
    except OSError:
        pass  # a folder on the way is not ours: told below
    barred = next((found for path in _used(address) if (found := first_barred(path))), "")
    try:
        status = os.stat(barred or address)
    except OSError as error:
        return Finding(
            Level.FAIL, "access", f"{barred or address}: {error.strerror}", "look at who may read its folder"
        )
    me, group = user_name(os.geteuid()), group_name(status.st_gid)
    return judge_access(
        Access(
            path=address,
            me=me,
            owner=user_name(status.st_uid),
            group=group,
            mode=stat.S_IMODE(status.st_mode),
            barred=barred,
            is_member=_is_member(me, status.st_gid),
            is_member_now=status.st_gid in (os.getegid(), *os.getgroups()),
            is_unmapped=_is_unmapped(status.st_uid),
        )
    )


def _used(address: str) -> list[str]:
    """The socket, and what has to lie beside it."""
    beside = [path(os.path.realpath(address)) for path in (tickets_path, seats_path)]
    return [address, *(path for path in beside if os.path.lexists(path))]


def judge_access(access: Access) -> Finding:
    """By who may use it."""
    whose = f"{access.owner}:{access.group}, {access.mode:04o}"
    if access.is_unmapped:
        return Finding(
            Level.WARN,
            "access",
            f"{access.path} is of a user who has no number here ({whose}): the broker is in another user namespace",
            "run both in one user namespace (docker: --userns=host), or map its user",
        )
    if access.barred:
        return Finding(Level.FAIL, "access", f"{access.me} may not use {access.barred} ({whose})", _fix(access))
    if access.mode & 0o006 and not access.mode & stat.S_ISVTX:
        return Finding(
            Level.WARN,
            "access",
            f"every user of this host may use {access.path} ({whose})",
            "restart the broker, which makes its socket 0600, or 0660 with `group`",
        )
    others = f", as may the group {access.group}" if access.mode & 0o060 else ""
    return Finding(Level.OK, "access", f"{access.me} may use {access.path} ({whose}){others}")


def _fix(access: Access) -> str:
    if not access.mode & 0o070:
        return f"set `group` in that broker's configuration to one of yours, or run as {access.owner}"
    if access.is_member and not access.is_member_now:
        return f"log in anew, or `newgrp {access.group}`: this session is older than the membership"
    if access.is_member_now:
        return f"`chmod g+rwX {access.barred}`: its mode keeps its own group out"
    return f"`usermod -aG {access.group} {access.me}` as root, then log in anew; or run as {access.owner}"


def _is_member(user: str, gid: int) -> bool:
    try:
        return user in grp.getgrgid(gid).gr_mem or pwd.getpwnam(user).pw_gid == gid
    except KeyError:
        return False


def _is_unmapped(uid: int) -> bool:
    """Whether this namespace leaves users out, and shows them all as this one."""
    words = _read("/proc/self/uid_map").split()
    return words[:2] != ["0", "0"] and _read(_OVERFLOW).strip() == str(uid) != str(os.geteuid())


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
