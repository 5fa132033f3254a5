"""The token channel: a pipe, read blocking or with a brief spin before it sleeps.

Where tokens travel, every contestant uses this same channel: a halted core's wake-up,
some 45 us on small virtual machines, would hide everything else."""

from __future__ import annotations

import os
import select
import time


class Channel:
    """One direction. `spin` is in seconds; 0 sleeps at once."""

    def __init__(self, spin: float) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._spin = spin
        self._poll: select.poll | None = None

    def send(self, token: bytes) -> None:
        os.write(self._writer, token)

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
                if self._poll is None:
                    self._poll = select.poll()
                    self._poll.register(reader, select.POLLIN)
                self._poll.poll()

    def close(self) -> None:
        for fd in (self._reader, self._writer):
            try:
                os.close(fd)
            except OSError:
                pass  # the other side's half was closed before
