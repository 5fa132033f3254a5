"""The bare msgpack echo: an `asyncio.Protocol` server in a process of its own and a blocking
client, with the framing of shmpool's protocol and none of its code. What a round trip to a
Python daemon costs at least."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import socket
import struct
import tempfile
from types import TracebackType
from typing import Any, Self

import msgpack

_LENGTH = struct.Struct("<I")


class EchoServer:
    """Runs while the context is entered. Make it before the process has threads."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="echo-")
        self.address = os.path.join(self._directory, "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen(128)
        self._process = multiprocessing.get_context("fork").Process(target=lambda: _begin(listener), daemon=True)
        self._process.start()
        listener.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._directory)


def _begin(listener: socket.socket) -> None:
    os.setsid()  # as a broker does: where the kernel shares cores out by session, it divides both from their clients
    asyncio.run(_serve(listener))


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Echo, sock=listener)
    await server.serve_forever()


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._pending = bytearray()

    def data_received(self, data: bytes) -> None:
        pending = self._pending
        pending += data
        while len(pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(pending)
            end = _LENGTH.size + length
            if len(pending) < end:
                break
            reply = msgpack.packb(msgpack.unpackb(pending[_LENGTH.size : end]))
            del pending[:end]
            self._transport.write(_LENGTH.pack(len(reply)) + reply)


class EchoClient:
    """One blocking connection."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)

    def call(self, message: list[Any]) -> Any:
        """One round trip."""
        body = msgpack.packb(message)
        self._socket.sendall(_LENGTH.pack(len(body)) + body)
        reply = self._socket.recv(65536)
        while len(reply) < _LENGTH.size or len(reply) < _LENGTH.size + _LENGTH.unpack_from(reply)[0]:
            reply += self._socket.recv(65536)
        return msgpack.unpackb(reply[_LENGTH.size :])

    def close(self) -> None:
        self._socket.close()
