"""Loops of the standard library's that do about the work of a lease: what shmpool is measured
by where there is no peer, so that a faster machine or a slower state of it changes both.

Attributes, a dictionary, a deque, stores into a memoryview, a slice of one, packing and
unpacking, a new object; for the whole cycle the two system calls of a byte lock as well; and for
a direct segment round trips of the bare echo, with maps of as many bytes on both sides."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from sys import getrefcount

from .echo import EchoClient, EchoServer
from .measure import Contestant, Lap, timed

_HANDLE = struct.Struct("<QQQ")
_LOCK = struct.Struct("hhqqi")
_OFD_SETLK = 37
_PAGE = 4096
_MASK = (1 << 48) - 1


class _Slot:
    __slots__ = ("base", "state", "window", "word")

    def __init__(self, word: int, window: mmap.mmap) -> None:
        self.base, self.state, self.word, self.window = 0, 1, word, window


class _Held:
    __slots__ = ("nbytes", "slot", "view")

    slot: _Slot
    nbytes: int
    view: memoryview


class Work:
    """Some slots of one page each."""

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, _PAGE)).cast("Q")
        slots = [_Slot(word, mmap.mmap(-1, _PAGE)) for word in range(0, 64, 16)]
        self.ready = deque(slots)
        self.by_word = {slot.word: slot for slot in slots}

    def lease(self, nbytes: int) -> _Held:
        words, slot = self.words, self.ready.pop()
        words[slot.word] = slot.base | slot.state
        words[slot.word + 1] += 1
        held = _Held.__new__(_Held)
        held.slot, held.nbytes = slot, nbytes
        held.view = memoryview(slot.window)[:nbytes]
        return held

    def release(self, held: _Held) -> None:
        slot = held.slot
        held.view.release()
        del held.view
        if getrefcount(slot.window):
            slot.base = slot.base + 256 & _MASK
        self.words[slot.word] = slot.base | slot.state
        self.ready.append(slot)

    def hand_over(self, held: _Held) -> _Held:
        slot = held.slot
        word, base, _ = _HANDLE.unpack(_HANDLE.pack(slot.word, slot.base, held.nbytes))
        found = self.by_word.get(word)
        if found is None or found.base != base:
            raise RuntimeError("this cannot be")
        return held


def lease_and_release() -> Contestant:
    """About what a lease and its release do."""
    work = Work()

    def body(objects: int) -> None:
        lease, release = work.lease, work.release
        for _ in range(objects):
            release(lease(1000))

    return timed(body)


class ByteLock:
    """A byte of a file of its own, locked and unlocked as a ticket's is."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (kept as long as the lock)
        self._lock, self._unlock = (_LOCK.pack(kind, os.SEEK_SET, 1, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))

    def take_and_drop(self) -> None:
        fcntl.fcntl(self._file, _OFD_SETLK, self._lock)
        fcntl.fcntl(self._file, _OFD_SETLK, self._unlock)

    def close(self) -> None:
        self._file.close()


def whole_cycle() -> Contestant:
    """About what lease, publish, open and release do, the byte lock included."""
    work, lock = Work(), ByteLock()

    def body(objects: int) -> None:
        lease, release, hand_over, take_and_drop = work.lease, work.release, work.hand_over, lock.take_and_drop
        for _ in range(objects):
            held = hand_over(lease(1000))
            take_and_drop()
            release(held)
            held = lease(1000)
            held.view[0]
            release(held)

    return timed(body)


@contextmanager
def round_trip_and_maps(echo: EchoServer, nbytes: int) -> Iterator[Contestant]:
    """About what a direct lease costs: a round trip, and maps of a file that has its pages."""
    client = EchoClient(echo.address)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(nbytes))
        file.flush()

        def once() -> float:
            started = time.perf_counter()
            client.call([2, 1, 0, 1, 1, True])
            for _ in range(2):
                mapped = mmap.mmap(file.fileno(), nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
                mapped[0]
                mapped.close()
            return time.perf_counter() - started

        def lap(objects: int) -> Lap:
            samples = [once() for _ in range(objects)]
            return Lap(sum(samples), samples)

        yield lap
    client.close()
