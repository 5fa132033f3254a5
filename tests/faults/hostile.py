"""Raw-socket peers, and what they say: everything that a sound client would not."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import socket
from collections.abc import Iterator

import msgpack

from shmpool.protocol.framing import FrameDecoder, encode_frame
from shmpool.protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    MAX_ROWS_PER_MESSAGE,
    PROTOCOL_VERSION,
    Fault,
    Hello,
    Message,
    Role,
    Welcome,
    decode,
    encode,
)

PATIENCE = 60.0


class Peer:
    """One raw connection. Reading raises EOFError at the end that the broker made."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(address)  # waits where the broker's backlog is full
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(PATIENCE)
        self.decoder = FrameDecoder()
        self.inbox: list[Message] = []

    def say(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(encode_frame(encode(message)) for message in messages))

    def hear(self) -> Message:
        while not self.inbox:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self.inbox += [decode(frame, FROM_BROKER) for frame in self.decoder.feed(data)]
        return self.inbox.pop(0)

    def hello(self, role: Role = Role.WORKER) -> Welcome:
        self.say(Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, secrets.randbits(64), 0, 0))
        welcome = self.hear()
        assert isinstance(welcome, Welcome), welcome
        return welcome

    def ending(self) -> Fault | None:
        """Read to the end: the fault that the broker gave as its reason, or None."""
        fault = None
        with contextlib.suppress(EOFError):
            while True:
                message = self.hear()
                fault = message if isinstance(message, Fault) else fault
        return fault

    def push(self, data: bytes) -> None:
        """Send what the broker may refuse to take."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()


def packed(*values: object) -> bytes:
    return encode_frame(msgpack.packb(list(values)))


HELLO = (1, HELLO_MAGIC, PROTOCOL_VERSION, 0, 7, 0, 0)

#: What breaks the framing.
BAD_FRAMES = {
    "zero_length": b"\0\0\0\0",
    "length_4_gib": b"\xff\xff\xff\xff",
    "length_64_kib_and_one": (65537).to_bytes(4, "little") + b"x" * 65537,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + os.urandom(64),
}

#: Whole frames whose content is no message that a client may send.
BAD_MESSAGES = {
    "not_msgpack": encode_frame(b"\xc1"),
    "random": encode_frame(b"\xc1" + os.urandom(300)),
    "two_objects": encode_frame(msgpack.packb([8]) * 2),
    "cut_off": encode_frame(msgpack.packb([7, 1, 0])[:-1]),
    "deep_arrays": encode_frame(b"\x91" * 60000 + b"\x01"),
    "deep_maps": encode_frame(b"\x81\x01" * 30000 + b"\x01"),
    "array_of_4_billion": encode_frame(b"\xdd\xff\xff\xff\xff"),
    "map_of_4_billion": encode_frame(b"\xdf\xff\xff\xff\xff"),
    "string_of_4_gib": encode_frame(b"\x92\x01\xdb\xff\xff\xff\xff"),
    "bytes_of_4_gib": encode_frame(b"\x92\x01\xc6\xff\xff\xff\xff"),
    "extension": encode_frame(msgpack.packb([7, msgpack.ExtType(1, b"x"), 0])),
    "timestamp": encode_frame(b"\x92\x07\xd6\xff\0\0\0\0"),
    "map": encode_frame(msgpack.packb({"kind": 7})),
    "nothing": encode_frame(msgpack.packb(None)),
    "empty_array": encode_frame(msgpack.packb([])),
    "kind_is_text": packed("7", 1, 0),
    "kind_is_true": packed(True, 1, 0),
    "kind_is_a_float": packed(7.0, 1, 0),
    "kind_unknown": packed(9),
    "kind_negative": packed(-1),
    "kind_huge": packed(1 << 63),
    "kind_of_the_broker": packed(17, 1, [1]),
    "fault_of_the_broker": packed(21, 1, "you are wrong"),
    "too_few_fields": packed(7, 1),
    "too_many_fields": packed(7, 1, 0, 0),
    "bool_for_int": packed(7, True, 0),
    "int_for_bool": packed(2, 1, 0, 1, 1, 1),
    "float_for_int": packed(7, 1.0, 0),
    "nil_for_int": packed(7, None, 0),
    "text_for_int": packed(7, "1", 0),
    "negative_request": packed(7, -1, 0),
    "request_zero": packed(7, 0, 0),
    "request_too_large": packed(7, 1 << 32, 0),
    "topic_unknown": packed(7, 1, 99),
    "no_rows": packed(5, []),
    "row_zero": packed(5, [0]),
    "row_negative": packed(6, [-1]),
    "row_too_large": packed(6, [1 << 20]),
    "rows_not_ints": packed(6, [[1]]),
    "too_many_rows": packed(6, list(range(1, MAX_ROWS_PER_MESSAGE + 2))),
    "nbytes_negative": packed(3, 1, -1, False),
    "nbytes_too_large": packed(3, 1, 1 << 40, False),
    "count_too_large": packed(2, 1, 0, 1, MAX_ROWS_PER_MESSAGE + 1, False),
    "chunks_zero": packed(2, 1, 0, 0, 1, False),
    "invalid_utf8": encode_frame(b"\x97\x01\xa2\xff\xfe\x01\x00\x07\x00\x00"),
}

#: Sound messages that nobody may send there: the schema accepts them, the order does not.
OUT_OF_ORDER = {
    "hello_twice": packed(*HELLO),
    "tier_unknown": packed(2, 1, 31, 1, 1, False),
    "run_of_pooled_slots": packed(2, 1, 0, 2, 1, False),
}


def noise(seed: int) -> Iterator[bytes]:
    """Mutations of sound messages, endlessly."""
    rng = random.Random(seed)
    sound = [
        packed(*HELLO), packed(2, 1, 0, 1, 4, False), packed(3, 2, 5000, False), packed(4, 2), packed(5, [1, 2]),
        packed(6, [1, 2, 3]), packed(7, 3, 0), packed(8),
    ]  # fmt: skip
    for _ in itertools.count():
        data = bytearray(b"".join(rng.choices(sound, k=rng.randint(1, 4))))
        for _ in range(rng.randint(1, 6)):
            way, at = rng.randrange(4), rng.randrange(len(data))
            if way == 0:
                data[at] = rng.randrange(256)
            elif way == 1:
                del data[at : at + rng.randint(1, 8)]
                data = data or bytearray(b"\0")
            elif way == 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                data[at] ^= 1 << rng.randrange(8)
        yield bytes(data)
