"""One aligned store commits a change: no reader ever sees half of it, or something else between.

The ledger's own accessors (a window of `shmpool.seat.windows`, ``cast("Q")``, items) between two processes;
and two controls that must fail, so that it is known that tearing would be seen: ``struct.pack_into``,
which zeroes first, and a word across a cache line's border.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from corners import corner

from shmpool.protocol.ledger import FIRST_CELL, GRANT, LINK, ROW_WORDS
from shmpool.seat.windows import (
    READ,
    WRITE,
    Window,
    Windows,
)

#: So many reads, and so many of them that saw a new value, else the two did not run at once.
SOME, MANY = (100_000, 1_000), (2_000_000, 20_000)
#: Seconds until a control must have failed, and until the real thing must have seen enough changes. A machine
#: that never ran the two at once by then has shown nothing, which is no fault.
PATIENCE = 60.0
#: Words whose eight bytes are equal; zero, which pack_into leaves for a moment, is none of them.
PATTERNS = tuple(byte * 0x0101010101010101 for byte in range(1, 256))
GOOD = frozenset(PATTERNS)
ROW = 5
BORDER = mmap.PAGESIZE - 4

Store = Callable[[int], None]


def item_store(window: Window, word: int) -> Store:
    """As the client and the broker do it."""
    words = memoryview(window).cast("Q")
    return lambda value: words.__setitem__(word, value)


def pack_into_store(window: Window, word: int) -> Store:
    """Forbidden: it zeroes the bytes first."""
    pack_into = struct.Struct("<Q").pack_into
    return lambda value: pack_into(window, word * 8, value)


def misaligned_store(window: Window, word: int) -> Store:
    """Half of it before the border, half behind it."""
    words = memoryview(window)[BORDER : BORDER + 8].cast("Q")
    return lambda value: words.__setitem__(0, value)


@contextmanager
def writer(fd: int, make: Callable[[Window, int], Store], word: int) -> Iterator[None]:
    """A process that stores one pattern after the other, until killed."""
    pid = os.fork()
    if pid == 0:
        try:
            store = make(Windows().make_sparse(fd, 2 * mmap.PAGESIZE, WRITE), word)
            while True:
                for value in PATTERNS:
                    store(value)
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the writer has died"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("torn")
    os.posix_fallocate(fd, 0, 2 * mmap.PAGESIZE)
    yield fd
    os.close(fd)


def read(words: memoryview, word: int, count: int) -> tuple[int, int]:
    """(values that nobody stored, changes seen) in *count* reads."""
    wrong = changes = 0
    last = -1
    for _ in range(count):
        value = words[word]
        if value != last:
            last = value
            changes += 1
            if value not in GOOD:
                wrong += 1
    return wrong, changes


def read_until(enough: Callable[[int, int, int], bool], words: memoryview, word: int) -> tuple[int, int, int]:
    """(reads, wrong values, changes) in rounds, until it is enough. Skips the test when *PATIENCE* has passed
    before the writer was seen at work often enough."""
    deadline = time.monotonic() + PATIENCE
    reads = wrong = changes = 0
    while not enough(reads, wrong, changes) and time.monotonic() < deadline:
        more = read(words, word, 50_000)
        reads, wrong, changes = reads + 50_000, wrong + more[0], changes + more[1]
    if not wrong and changes < SOME[1]:
        pytest.skip(f"the processes hardly ran at once: {changes} changes seen in {PATIENCE} s")
    return reads, wrong, changes


@pytest.mark.parametrize("much", [SOME, pytest.param(MANY, marks=pytest.mark.long)], ids=["some", "many"])
@pytest.mark.parametrize("word", corner(GRANT, FIRST_CELL, LINK), ids=["grant", "cell", "link"])
def test_items_of_the_ledger_are_never_torn(fd: int, word: int, much: tuple[int, int]) -> None:
    most_reads, most_changes = much
    at = ROW * ROW_WORDS + word
    words = memoryview(Windows().make_sparse(fd, 2 * mmap.PAGESIZE, WRITE)).cast("Q")
    for neighbour in (at - 1, at + 1):
        words[neighbour] = 0x123456789ABCDEF0
    words[at] = PATTERNS[0]
    reading = memoryview(Windows().make_sparse(fd, 2 * mmap.PAGESIZE, READ)).cast("Q")
    with writer(fd, item_store, at):
        reads, wrong, changes = read_until(lambda r, w, c: r >= most_reads and c >= most_changes, reading, at)
    print(f"{reads} reads, {changes} changes seen, {wrong} wrong")
    assert wrong == 0
    assert words[at - 1] == words[at + 1] == 0x123456789ABCDEF0


def test_control_pack_into_shows_values_that_nobody_stored(fd: int) -> None:
    at = ROW * ROW_WORDS
    words = memoryview(Windows().make_sparse(fd, 2 * mmap.PAGESIZE, WRITE)).cast("Q")
    words[at] = PATTERNS[0]
    with writer(fd, pack_into_store, at):
        reads, wrong, changes = read_until(lambda r, w, c: w > 0, words, at)
    print(f"{reads} reads, {changes} changes seen, {wrong} wrong")
    assert wrong, "the control did not fail: this test would not see a torn store"


def test_control_misaligned_words_are_torn(fd: int) -> None:
    window = memoryview(Windows().make_sparse(fd, 2 * mmap.PAGESIZE, WRITE))
    words = window[BORDER : BORDER + 8].cast("Q")
    words[0] = PATTERNS[0]
    with writer(fd, misaligned_store, 0):
        reads, wrong, changes = read_until(lambda r, w, c: w > 0, words, 0)
    print(f"{reads} reads, {changes} changes seen, {wrong} wrong")
    assert wrong, "the control did not fail: this test would not see a torn store"
