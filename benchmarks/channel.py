"""The token channel: a pipe, read blocking or with a brief spin before it sleeps.

Where tokens travel, every contestant uses this same channel: a halted core's wake-up,
some 45 us on small virtual machines, would hide everything else. Standard library only."""

from __future__ import annotations

import os
import select
import time


class Channel:
    """One direction, made before the fork; each side then closes the end it does not use."""

    def __init__(self, spin: float = 0.0) -> None:
        self._reader, self._writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self.set_spin(spin)

    def set_spin(self, spin: float) -> None:
        """How long `receive` polls before it sleeps, in seconds; 0 sleeps at once."""
        self._spin = spin
        if self._reader >= 0:
            os.set_blocking(self._reader, not spin)

    def send(self, tokens: bytes) -> None:
        os.write(self._writer, tokens)

    def receive(self, most: int) -> bytes:
        """At least a byte, at most *most*; b"" at the end of the stream."""
        reader = self._reader
        until = 0.0
        while True:
            try:
                return os.read(reader, most)
            except BlockingIOError:
                pass
            now = time.perf_counter()
            if not until:
                until = now + self._spin
            elif now >= until:
                self._poll.poll()

    def keep_reader(self) -> None:
        """This process only reads: the end of the stream shows when the writer is gone."""
        os.close(self._writer)
        self._writer = -1

    def keep_writer(self) -> None:
        """This process only writes."""
        os.close(self._reader)
        self._reader = -1

    def close(self) -> None:
        for fd in (self._reader, self._writer):
            if fd >= 0:
                os.close(fd)
        self._reader = self._writer = -1
