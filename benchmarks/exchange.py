"""An exchange: workers publish into one pipe, and open whatever they find in it. Anybody may
come and go: who makes an object takes one as well, so few are ever on their way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import shmpool

from .mixes import LARGEST, REALISTIC, sizes_of
from .plan import paged

_HANDLE = 24
_SIZES = 4096


class Exchange:
    """Made before the workers are forked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)

    @contextmanager
    def trader(self, seed: int) -> Iterator[Trader]:
        """A worker that has a pool while the context is entered."""
        with shmpool.connect(self.address) as pool:
            yield Trader(self, pool, seed)

    def put(self, handle: bytes) -> None:
        os.write(self._writer, handle)

    def get(self) -> shmpool.Handle | None:
        """The oldest handle, None if there is none now."""
        try:
            return shmpool.Handle(os.read(self._reader, _HANDLE))
        except BlockingIOError:
            return None

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Trader:
    """Makes and takes objects of the realistic mix, all bytes copied."""

    def __init__(self, exchange: Exchange, pool: shmpool.Pool, seed: int) -> None:
        self._exchange, self._pool = exchange, pool
        self._sizes = cycle(sizes_of(REALISTIC, _SIZES, seed))
        self._source, self._target = memoryview(bytes(LARGEST)), paged(LARGEST)

    def trade_until(self, moment: float) -> int:
        """Until that moment of `time.perf_counter`: how many were made."""
        made = 0
        while time.perf_counter() < moment:
            self._make(next(self._sizes))
            self._take()
            made += 1
        return made

    def take_all(self) -> None:
        """What is left in the pipe."""
        while self._take():
            pass

    def _make(self, nbytes: int) -> None:
        with self._pool.lease(nbytes) as lease:
            lease.write(self._source[:nbytes])
            self._exchange.put(lease.publish())

    def _take(self) -> bool:
        handle = self._exchange.get()
        if handle is not None:
            with self._pool.open(handle) as buffer:
                self._target[: buffer.nbytes] = buffer.view
        return handle is not None
