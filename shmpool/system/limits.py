"""What the kernel refuses a process that has reached a limit of its own, in our errors and
with the limit's name: descriptors, address space, maps."""

from __future__ import annotations

import errno
import resource

from ..errors import ConfigError, SharedMemoryFull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


def refused(error: OSError, doing: str) -> Exception:
    """The error to raise for what the kernel refused while *doing* something: `ConfigError` for
    descriptors, `SharedMemoryFull` for memory, *error* itself for anything else."""
    if error.errno in _DESCRIPTORS:
        return ConfigError(f"{doing}: {explain(error)}")
    if error.errno == errno.ENOMEM:
        return SharedMemoryFull(f"{doing}: {explain(error)}")
    return error


def explain(error: OSError) -> str:
    """What an error says, and for a limit which one it is and how it is raised."""
    text = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = "any number" if hard == resource.RLIM_INFINITY else str(hard)
        return f"{text}: this process may have {soft} (`ulimit -n`; it may be raised to {most})"
    if error.errno == errno.ENFILE:
        return f"{text}: the host's limit is fs.file-max"
    if error.errno == errno.ENOMEM:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            return f"{text}: this process may have {soft // 2**20} MiB of address space (`ulimit -v`)"
        return f"{text}: too little memory, or more maps than vm.max_map_count"
    return text
