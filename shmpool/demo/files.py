"""Which files the demo takes, and what can be wrong with one.

Only regular files count. Symbolic links below the path are not followed and special files
not opened. Nothing here raises for the state of a file: it is `Skipped`, with the reason.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Trouble(Enum):
    """Why a file was left out; none of these fails the demo."""

    CHANGED = "changed while it was read"
    VANISHED = "vanished"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TOO_LARGE = "larger than the pool"


class Skipped(Exception):
    """This file is left out."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


class Identity(NamedTuple):
    """What stays the same as long as nobody writes a file; size in bytes."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass
class Corpus:
    """The files found: paths and their sizes at that moment, and the directories that
    could not be listed."""

    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """All their sizes together."""
        return sum(self.sizes)


def scan(root: str, leave_out: frozenset[str] = frozenset()) -> Corpus:
    """All regular files below *root*, in the order of their names; a *root* that is a
    file is the only one. Directories with a name in *leave_out* are not entered."""
    corpus = Corpus()
    if stat.S_ISREG(os.stat(root).st_mode):
        corpus.paths, corpus.sizes = [root], [os.stat(root).st_size]
        return corpus
    ahead = [root]
    while ahead:
        ahead += reversed(_list(ahead.pop(), leave_out, corpus))
    return corpus


def _list(directory: str, leave_out: frozenset[str], corpus: Corpus) -> list[str]:
    """Add a directory's files to the corpus and return its subdirectories."""
    try:
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        corpus.unreadable.append(directory)
        return []
    below = []
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            corpus.paths.append(entry.path)
            corpus.sizes.append(_size(entry))
        elif entry.is_dir(follow_symlinks=False) and entry.name not in leave_out:
            below.append(entry.path)
    return below


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0  # it vanished already: its reader will say so


@contextmanager
def opened(path: str) -> Iterator[tuple[int, Identity]]:
    """(descriptor, identity) of a regular file with something in it. Raises Skipped."""
    with _judged():
        # Not blocked by a fifo, nor led elsewhere by a link, that took the file's place.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        identity = _identity(fd)
        if identity.size == 0:
            raise Skipped(Trouble.EMPTY)
        yield fd, identity
    finally:
        os.close(fd)


def require_unchanged(fd: int, before: Identity) -> None:
    """Raise Skipped if somebody has written the file since."""
    if _identity(fd) != before:
        raise Skipped(Trouble.CHANGED)


def read_into(fd: int, view: memoryview) -> None:
    """Fill *view* from the file. Raises Skipped when the file ends before."""
    done = 0
    while done < len(view):
        with _judged():
            count = os.readv(fd, [view[done:]])
        if count == 0:
            raise Skipped(Trouble.CHANGED)
        done += count


def read_whole(fd: int, nbytes: int) -> bytes:
    """The next *nbytes* bytes of the file. Raises Skipped when it ends before."""
    pieces: list[bytes] = []
    while nbytes:
        with _judged():
            piece = os.read(fd, nbytes)  # the kernel gives at most 2 GiB at once
        if not piece:
            raise Skipped(Trouble.CHANGED)
        nbytes -= len(piece)
        pieces.append(piece)
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]


def blocks(fd: int, block: memoryview) -> Iterator[memoryview]:
    """The file to its end, through *block*: each piece is gone when the next one comes."""
    while True:
        with _judged():
            count = os.readv(fd, [block])
        if count == 0:
            return
        yield block[:count]


def _identity(fd: int) -> Identity:
    with _judged():
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Skipped(Trouble.CHANGED)
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def _judged() -> Iterator[None]:
    """Turn the system's error about a file into Skipped. It wraps single calls only:
    errors of the pool are OSErrors too, and are not about files."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise Skipped(Trouble.VANISHED) from error
        changed = error.errno == errno.ELOOP  # a link has taken its place
        raise Skipped(Trouble.CHANGED if changed else Trouble.UNREADABLE) from error
