"""What hostile and broken peers do to a broker, as fast as one process can, until told to stop.

Each attack is a generator: a step is a few system calls, and at its end it lets go of all."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
from collections.abc import Callable, Iterator

from shmpool.protocol.framing import encode_frame
from shmpool.protocol.messages import (
    HELLO_MAGIC,
    MAX_ROWS_PER_MESSAGE,
    PROTOCOL_VERSION,
    Bell,
    Hello,
    Message,
    Query,
    Refill,
    Return,
    Role,
    Topic,
    encode,
)

#: Connections held at a time, where an attack holds many.
MANY = 256
#: Fewer than `max_clients` of the benchmark's broker and its spare ones.
THOUSAND = 1000

Steps = Iterator[None]


def garbage(address: str) -> Steps:
    """Connect and send what is no frame; the broker ends it; again."""
    return _refused(address, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", encode_frame(b"\xc1"))


def nested(address: str) -> Steps:
    """The largest frames of the deepest nesting."""
    return _refused(address, encode_frame(b"\x91" * 60000 + b"\x01"))


def half_frames(address: str) -> Steps:
    """Many connections, each a byte further into a long frame."""
    with _many(address, MANY) as peers:
        for peer in peers:
            _say(peer, _hello())
            peer.sendall((60000).to_bytes(4, "little"))
        for peer in itertools.cycle(peers):
            peer.sendall(b"\x91")
            yield


def never_reads(address: str) -> Steps:
    """Ask for the longest answers and read none of them; when the broker ends it, again."""
    question = b"".join(_frame(Query(number, Topic.STATS)) for number in range(1, 9))
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello(Role.OPERATOR))
            while True:
                peer.sendall(question)
                yield
        yield


def thousand(address: str) -> Steps:
    """A thousand connections that say nothing, closed and opened one after the other."""
    with _many(address, THOUSAND) as peers:
        for number in itertools.cycle(range(THOUSAND)):
            peers[number].close()
            peers[number] = _connect(address)
            yield


def false_bells(address: str) -> Steps:
    """The longest bells and returns for rows of others, replayed without a pause."""
    rows = list(range(1, MAX_ROWS_PER_MESSAGE + 1))
    return _flood(address, _frame(Bell(rows)) + _frame(Return(rows)))


def refills(address: str) -> Steps:
    """Refills replayed, always the same number, never read and never given back."""
    return _flood(address, b"".join(_frame(Refill(number, 1, 1, 64, True)) for number in range(1, 9)))


#: By name, in the order of the table.
ATTACKS: dict[str, Callable[[str], Steps]] = {
    "garbage": garbage,
    "deep nesting": nested,
    "half frames": half_frames,
    "never reads": never_reads,
    "1,000 connections": thousand,
    "false bells": false_bells,
    "refills replayed": refills,
}


def _refused(address: str, *junk: bytes) -> Steps:
    for data in itertools.cycle(junk):
        with _connect(address) as peer, contextlib.suppress(OSError):
            peer.sendall(data)
            while peer.recv(4096):
                pass
        yield


def _flood(address: str, data: bytes) -> Steps:
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello())
            while True:
                peer.sendall(data)
                yield
        yield


def _connect(address: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(address)
    peer.settimeout(1.0)
    return peer


@contextlib.contextmanager
def _many(address: str, count: int) -> Iterator[list[socket.socket]]:
    peers = [_connect(address) for _ in range(count)]
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()


def _hello(role: Role = Role.WORKER) -> Message:
    return Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, secrets.randbits(64), 0, 0)


def _frame(message: Message) -> bytes:
    return encode_frame(encode(message))


def _say(peer: socket.socket, message: Message) -> None:
    peer.sendall(_frame(message))
