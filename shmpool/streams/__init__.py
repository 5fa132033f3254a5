"""Streams through leased memory: copying (`copying`), copying what passes by (`tee`), a lease and a
buffer as files (`files`)."""

from __future__ import annotations

from .copying import copy
from .files import BufferFile, LeaseFile
from .tee import ChunkedTeeReader

__all__ = ["BufferFile", "ChunkedTeeReader", "LeaseFile", "copy"]
