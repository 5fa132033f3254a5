"""Bells that an exception of a signal handler comes across: none is lost. Those of who rings very often come soon."""

from __future__ import annotations

import socket
import sys
from types import FrameType
from typing import Any

import pytest

from shmpool.link import bells
from shmpool.link.bells import AT_ONCE, SOON
from shmpool.link.connection import Connection
from shmpool.link.link import Link
from shmpool.protocol.framing import FrameDecoder
from shmpool.protocol.messages import FROM_CLIENT, Bell, decode

ROWS = [3, 5, 8]


class Interrupt(BaseException):
    """What a handler raises."""


class Interrupter:
    """Raises at the nth line of what is called in `link/bells` and `link/sending`."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("bells.py", "sending.py")):
            return None
        if event in ("call", "line"):
            self.left -= 1
            if self.left == 0:
                raise Interrupt
        return self._trace


def heard(sock: socket.socket) -> set[int]:
    rows: set[int] = set()
    decoder = FrameDecoder()
    sock.setblocking(False)
    while True:
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return rows
        for frame in decoder.feed(data):
            message = decode(frame, FROM_CLIENT)
            assert isinstance(message, Bell)
            rows.update(message.rows)


@pytest.mark.parametrize("n", range(1, 60, 3))
def test_no_bell_is_lost_wherever_a_send_is_interrupted(n: int) -> None:
    mine, theirs = socket.socketpair()
    link = Link(None)  # type: ignore[arg-type]
    link.connection = Connection(mine)
    try:
        for row in ROWS:
            link.bells.soon(row)
        try:
            with Interrupter(n):
                link.send_bells()
        except Interrupt:
            link.send_bells()
        assert heard(theirs) == set(ROWS)
    finally:
        link.close()
        theirs.close()


def test_who_rings_very_often_is_heard_soon_instead_of_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message has the broker look, and a process that works in a cycle while somebody waits would
    have it do little else: it rang for each of 200,000 releases a second."""
    now = 100.0
    monkeypatch.setattr(bells.time, "monotonic", lambda: now)
    mine, theirs = socket.socketpair()
    link = Link(None)  # type: ignore[arg-type]
    link.connection = Connection(mine)
    try:
        for at in range(1, 4):
            now = 100.0 + 2 * at * SOON
            for row in range(100 * at, 100 * at + 100):
                link.ring(row)
            assert heard(theirs) == set(range(100 * at, 100 * at + AT_ONCE))
            assert link.bells.pause() == SOON  # the helper looks again
            link.send_bells()
            assert heard(theirs) == set(range(100 * at + AT_ONCE, 100 * at + 100))
    finally:
        link.close()
        theirs.close()
