"""The socket to the broker: connecting, the hello, framing; sending that never blocks.

Any thread may send, one at a time receives (`requests` says which). What the socket does not take at
once waits in an outbox, which the helper empties.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

from .errors import BrokerUnavailable, ConfigError, LocalProtocolError, QuotaExceeded, RemoteProtocolError, ShmpoolError
from .protocol.codes import MEANINGS, Blame, Code
from .protocol.framing import FrameDecoder, FrameError, encode_frame
from .protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Fault,
    Hello,
    Message,
    MessageError,
    Recall,
    Role,
    Welcome,
    decode,
    encode,
)

#: Bytes that may wait for a broker that does not read, before the connection is given up.
MAX_OUTBOX = 1024 * 1024
_RECEIVE = 64 * 1024
#: Seconds until a full backlog is tried again.
_BACKLOG_PAUSE = 0.005


class ConnectionEnded(Exception):
    """The connection is gone; the helper will make another."""


class Connection:
    """One connection to a broker. `send` is thread-safe, `receive` is for one thread.
    Not usable in a forked child, which closes it by `abandon`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = FrameDecoder()
        self._outbox = bytearray()
        self._send_lock = threading.Lock()

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def poll_with(self, poll: select.poll) -> bool:
        """Register for polling: what arrives, and room for the outbox. False when it is
        closed, maybe by another thread just now."""
        try:
            poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self._outbox else 0))
        except (ValueError, OSError):
            return False
        return True

    @property
    def has_outbox(self) -> bool:
        """Whether something waits until the socket takes it."""
        return bool(self._outbox)

    def send(self, *messages: Message) -> None:
        """Send, or keep for `flush` what the socket does not take now. Errors are left
        for the receiving side to find."""
        frames = b"".join(encode_frame(encode(message)) for message in messages)
        with self._send_lock:
            self._outbox += frames
            self._flush()

    def try_send(self, message: Message) -> bool:
        """Send whole, or not at all: False where another thread is sending (or this one,
        interrupted by a finalizer) or the socket is full."""
        if self._outbox or not self._send_lock.acquire(blocking=False):
            return False
        try:
            frame = encode_frame(encode(message))
            sent = self._socket.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._outbox += frame[sent:]
            return True
        except OSError:
            return False
        finally:
            self._send_lock.release()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        with self._send_lock:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del self._outbox[:sent]
        except BlockingIOError:
            if len(self._outbox) > MAX_OUTBOX:
                self.shut_down()
        except OSError:
            self._outbox.clear()

    def receive(self) -> list[Message]:
        """What has arrived, without blocking. Raises ConnectionEnded at EOF or error, and
        RemoteProtocolError when the broker breaks the protocol."""
        try:
            data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        if not data:
            raise ConnectionEnded("the broker closed the connection")
        return list(self._decode(data))

    def receive_one(self, deadline: float) -> list[Message]:
        """Like `receive`, but waits until *deadline* (monotonic seconds) for anything."""
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as error:
            raise ConnectionEnded(str(error) or "no answer in time") from error
        finally:
            self._socket.settimeout(None)
        if not data:
            raise ConnectionEnded("the broker closed the connection")
        return list(self._decode(data))

    def _decode(self, data: bytes) -> Iterator[Message]:
        try:
            for frame in self._decoder.feed(data):
                yield decode(frame, FROM_BROKER)
        except (FrameError, MessageError) as error:
            raise RemoteProtocolError(f"the broker broke the protocol: {error}") from error

    def shut_down(self) -> None:
        """Make the receiving side see the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was already

    def close(self) -> None:
        """Close it. What has not been read is discarded with it."""
        self._socket.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptor, without touching the parent's socket."""
        os.close(self._socket.detach())


def dial(address: str, deadline: float) -> Connection:
    """Connect to a broker's socket. Raises BrokerUnavailable."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise BrokerUnavailable(f"no socket for the broker at {address}: {error.strerror}") from error
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        while True:
            try:
                sock.connect(address)
                break
            except BlockingIOError:  # so many connect just now that the broker's backlog is full
                if time.monotonic() > deadline:
                    raise
                time.sleep(_BACKLOG_PAUSE)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise BrokerUnavailable(
            f"no broker answers at {address}: {error.strerror or error}. Start one with `shmpoold --socket {address}`,"
            " or run this command under `shmpool run -- …`, or use shmpool.Broker() or connect(autostart=True)"
        ) from error
    return Connection(sock)


def greet(connection: Connection, role: Role, nonce: int, pool_id: int, seat: int, deadline: float) -> Welcome:
    """Say hello and wait for the welcome. Raises BrokerUnavailable or what the broker's
    fault means; the connection is closed then."""
    try:
        connection.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, nonce, pool_id, seat))
        messages = connection.receive_one(deadline)
        while not messages:
            messages = connection.receive_one(deadline)
        answer, *more = messages
        for message in messages:
            if isinstance(message, Fault):  # maybe right behind the welcome: the broker stops
                raise fault_error(message)
        # A Recall may follow at once; it need not be kept, for it comes again.
        if not isinstance(answer, Welcome) or not all(isinstance(message, Recall) for message in more):
            raise RemoteProtocolError(
                f"the broker answered Hello with {[type(message).__name__ for message in messages]}"
            )
        return answer
    except ConnectionEnded as error:
        connection.close()
        raise BrokerUnavailable(f"the broker did not answer Hello: {error}") from error
    except BaseException:
        connection.close()
        raise


def fault_error(fault: Fault) -> ShmpoolError:
    """The exception for a broker's fault."""
    code = Code(fault.code)
    text = f"{fault.text} [{code.name}]"
    if code in (Code.BAD_FRAME, Code.BAD_MESSAGE):
        return LocalProtocolError(f"the broker refused what this client sent: {text}")
    if code is Code.WRONG_VERSION:
        return LocalProtocolError(
            f"{text}: this process speaks protocol {PROTOCOL_VERSION}; whichever of the two runs the older shmpool"
            " must be restarted with the other's version"
        )
    if code is Code.QUOTA:
        return QuotaExceeded(text)
    if code is Code.FORBIDDEN:
        return ConfigError(text)
    return BrokerUnavailable(text if MEANINGS[code].blame is not Blame.CLIENT else f"the broker ended it: {text}")
