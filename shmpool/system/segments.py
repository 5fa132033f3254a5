"""Attaching to segments by name, untracked: `multiprocessing.shared_memory` would register
them with a resource tracker that unlinks them when this process exits."""

from __future__ import annotations

import errno
import fcntl
import os

import posix_ipc

from .limits import refused
from .memory import SHM_DIR


def open_segment(name: str, *, writable: bool) -> int:
    """Open a segment by name; the descriptor is close-on-exec. Raises FileNotFoundError,
    PermissionError, and ConfigError when this process has no descriptor left."""
    try:
        fd = posix_ipc.SharedMemory("/" + name, read_only=not writable).fd
    except posix_ipc.ExistentialError as error:
        raise FileNotFoundError(errno.ENOENT, "the segment is gone", f"{SHM_DIR}/{name}") from error
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, "no right to open the segment", f"{SHM_DIR}/{name}") from error
    except OSError as error:  # posix_ipc names no number for a limit on descriptors, its only words of its own
        known = error if error.errno else OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise refused(known, f"cannot open the segment {name}") from error
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return int(fd)
