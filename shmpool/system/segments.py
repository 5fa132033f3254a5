"""Attaching to segments by name, untracked: `multiprocessing.shared_memory` would register
them with a resource tracker that unlinks them when this process exits."""

from __future__ import annotations

import os

from ..errors import BrokerUnavailable
from ..protocol.names import SHM_DIR
from .descriptors import Descriptor, open_owned
from .limits import refused
from .outside import own


class SegmentGone(BrokerUnavailable, FileNotFoundError):
    """The broker has ended and removed its pool, or only this segment of it."""


def open_segment(name: str, *, writable: bool) -> Descriptor:
    """Open a segment by name; the descriptor is close-on-exec. Raises SegmentGone,
    PermissionError, and ConfigError when this process has no descriptor left."""
    try:
        return open_owned(os.open, f"{SHM_DIR}/{name}", os.O_NOFOLLOW | (os.O_RDWR if writable else os.O_RDONLY))
    except own(FileNotFoundError) as error:
        raise SegmentGone(f"the segment {name} is gone: its pool was removed") from error
    except own(PermissionError) as error:
        raise PermissionError(f"no right to open the segment {name}: ask for the broker's group") from error
    except own(OSError) as error:
        raise refused(error, f"cannot open the segment {name}") from error
