"""The socket to the broker: connecting, the hello, framing; sending that never blocks.

What the socket does not take at once waits in an outbox, which the helper empties. Who reads is
the link's business (`link`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from .. import hints
from ..errors import (
    BrokerUnavailable,
    ConfigError,
    LocalProtocolError,
    QuotaExceeded,
    RemoteProtocolError,
    ShmpoolError,
)
from ..protocol.codes import (
    MEANINGS,
    Blame,
    Code,
)
from ..protocol.framing import (
    FrameDecoder,
    FrameError,
    encode_frame,
)
from ..protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Fault,
    Hello,
    Message,
    MessageError,
    Recall,
    Role,
    Settings,
    Welcome,
    decode,
    encode,
)
from ..system.descriptors import (
    Closed,
    Descriptor,
    drain,
)
from ..system.limits import explain

#: Bytes that may wait for a broker that does not read, before the connection is given up.
MAX_OUTBOX = 1024 * 1024
_RECEIVE = 64 * 1024
#: Seconds until a full backlog is tried again.
_BACKLOG_PAUSE: Final = 0.005
#: A broker that is still to come is looked for after pauses that grow, in seconds.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.1
#: Who waits for an answer looks up so often, whether it still wants it.
_LOOK_UP: Final = 0.05
#: A broker that listens has so long to answer, whatever the deadline is.
LEAST_ANSWER: Final = 0.04
#: Errors of a connect after which the broker may still come.
_NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EAGAIN, errno.ENOTDIR)


class ConnectionEnded(Exception):
    """The connection is gone; the helper will make another."""


class Connection:
    """One connection to a broker. Any thread sends, one at a time receives. No call blocks.
    Not usable in a forked child, which closes it by `abandon`.

    There is no lock, which an exception could keep: messages are put into the outbox in one step,
    and whoever finds nobody sending sends what is there.
    """

    def __init__(self, sock: socket.socket) -> None:
        # Not MSG_DONTWAIT on a blocking socket: gevent waits where the kernel says EAGAIN.
        sock.setblocking(False)
        self._socket = sock
        self._decoder = FrameDecoder()
        self._outbox: deque[bytes] = deque()
        #: What the socket has not taken yet of the frames that were sent last.
        self._rest = b""
        #: Under 0: who sends.
        self._sender: dict[int, object] = {}
        #: What was received is just being handled, or an exception came between: nothing more can be
        #: read then.
        self.is_in_pieces = False
        #: The same of what is sent.
        self._is_torn = False

    @property
    def address(self) -> str:
        """The socket's path, as it was dialled; "" when it is closed."""
        try:
            return str(self._socket.getpeername())
        except OSError:
            return ""

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def poll_with(self, poll: select.poll) -> bool:
        """Register for polling: what arrives, and room for the outbox. False when it is
        closed, maybe by another thread just now."""
        try:
            poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self.has_outbox else 0))
        except (ValueError, OSError):
            return False
        return True

    @property
    def has_outbox(self) -> bool:
        """Whether something waits until the socket takes it."""
        return bool(self._rest or self._outbox)

    def send(self, *messages: Message) -> None:
        """Send, or keep for `flush` what the socket does not take now. Errors are left
        for the receiving side to find."""
        self._outbox.append(b"".join([encode_frame(encode(message)) for message in messages]))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it, unless another thread is just sending:
        it sends this too."""
        me, sender, is_open = object(), self._sender, True
        while is_open and (self._rest or self._outbox):
            try:
                if sender.setdefault(0, me) is not me:
                    return
                is_open = self._send_some()
            finally:
                if 0 in sender and sender[0] is me:
                    del sender[0]

    def _send_some(self) -> bool:
        """Send what waits; False when the socket takes no more."""
        if self._is_torn:  # an exception came while some of it was sent: nobody knows how much
            self._forget_outbox()
            self.shut_down()
            return False
        self._is_torn = True
        is_open = True
        try:
            while self._rest or self._outbox:
                rest = self._rest or self._outbox.popleft()
                self._rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            self._rest = rest
            is_open = False
            if len(rest) + sum(map(len, list(self._outbox))) > MAX_OUTBOX:
                self.shut_down()
        except OSError:
            self._forget_outbox()
        except BaseException:
            self.shut_down()
            raise
        self._is_torn = False
        return is_open

    def _forget_outbox(self) -> None:
        self._outbox.clear()
        self._rest = b""

    def receive(self) -> list[Message]:
        """What has arrived. Raises ConnectionEnded at EOF or error, and RemoteProtocolError when the
        broker breaks the protocol."""
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        if not data:
            raise ConnectionEnded("the broker closed the connection")
        return list(self._decode(data))

    def receive_one(self, deadline: float, interruption: Interruption | None = None) -> list[Message]:
        """Like `receive`, but waits until *deadline* (monotonic seconds) for anything. Raises
        ConnectionEnded when it has passed, or *interruption* says so."""
        poll = select.poll()
        if not self.poll_with(poll):
            raise ConnectionEnded("the connection is closed")
        if interruption is not None and interruption.wakeup is not None:
            poll.register(interruption.wakeup, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(min(left, _LOOK_UP) * 1000 + 1))
            if self._socket.fileno() in ready:
                self.flush()
                return self.receive()
            if interruption is not None:
                if interruption.is_called():
                    raise ConnectionEnded("it is waited for no longer")
                if interruption.wakeup in ready:
                    drain(interruption.wakeup)
        raise ConnectionEnded("timed out")

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
        try:
            os.close(self._socket.detach())
        except OSError:
            pass  # somebody closed all that the child inherited


class Interruption(NamedTuple):
    """What ends a waiting early: *is_called* is asked now and then, and when *wakeup* can be read."""

    is_called: Callable[[], bool]
    wakeup: Descriptor | Closed | None = None


def dial(address: str, deadline: float, interruption: Interruption | None = None) -> Connection:
    """Connect to a broker's socket. Raises BrokerUnavailable; its ``may_come`` says whether another
    try can help."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise BrokerUnavailable(f"no socket for the broker at {address}: {explain(error)}") from error
    try:
        connection = Connection(sock)
        while True:
            try:
                sock.connect(address)
                break
            except BlockingIOError:  # so many connect just now that the broker's backlog is full
                if time.monotonic() > deadline or (interruption is not None and interruption.is_called()):
                    raise
                # Each waits another while: who came first must not meet who came last again and again.
                time.sleep(_BACKLOG_PAUSE * jitter())
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _no_answer(address, error) from None  # it says all that the cause says
        raise
    return connection


def _no_answer(address: str, error: OSError) -> BrokerUnavailable:
    unavailable = BrokerUnavailable(hints.unreachable(address, error))
    unavailable.may_come = error.errno in _NOT_YET
    return unavailable


def listens(address: str) -> bool:
    """Whether somebody listens at a socket's path; a full backlog is a yes."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as sock:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def greet(
    connection: Connection,
    role: Role,
    nonce: int,
    pool_id: int,
    seat: int,
    deadline: float,
    interruption: Interruption | None = None,
) -> Welcome:
    """Say hello and wait for the welcome. Raises BrokerUnavailable or what the broker's
    fault means; the connection is closed then."""
    address = f" at {connection.address}" if connection.address else ""
    try:
        connection.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, nonce, pool_id, seat))
        messages: list[Message] = []
        while not messages:
            # Recalls and settings may come before and behind; who waits is seen by the wanted flags.
            messages = [
                message
                for message in connection.receive_one(deadline, interruption)
                if not isinstance(message, Recall | Settings)
            ]
        for message in messages:
            if isinstance(message, Fault):  # maybe right behind the welcome: the broker stops
                raise fault_error(message)
        answer = messages[0]
        if not isinstance(answer, Welcome) or len(messages) > 1:
            raise RemoteProtocolError(
                f"the broker answered Hello with {[type(message).__name__ for message in messages]}"
            )
        return answer
    except ConnectionEnded as error:
        connection.close()
        unavailable = BrokerUnavailable(
            f"the broker{address} did not answer Hello: {error}; it is stopped, or another program listens there"
        )
        unavailable.may_come = True
        raise unavailable from None
    except RemoteProtocolError as error:
        connection.close()
        raise RemoteProtocolError(f"{error}; is what listens{address} a shmpool broker?") from None
    except BaseException:
        connection.close()
        raise


def await_welcome(
    find: Callable[[], str], nonce: int, deadline: float, is_given_up: Callable[[], bool]
) -> tuple[str, Connection, Welcome]:
    """Connect as a worker that has no seat yet to the broker at the address that *find* says, which
    may be still to come: nobody listens, or who listens does not answer yet. Tries at least once,
    and until *deadline*. Raises like `dial` and `greet`."""
    pause = _FIRST_PAUSE
    while True:
        address = find()
        present = _identity(address)
        # Another broker may take the socket's place while this one is silent.
        moved = Interruption(partial(_is_in_vain, find, present, is_given_up))
        try:
            connection = dial(address, deadline, moved)
            # One that is there has a moment to answer, whatever the deadline is.
            answers = max(deadline, time.monotonic() + LEAST_ANSWER)
            return address, connection, greet(connection, Role.WORKER, nonce, 0, 0, answers, moved)
        except BrokerUnavailable as error:
            left = deadline - time.monotonic()
            if not error.may_come or left <= 0 or is_given_up():
                raise
        time.sleep(min(left, pause * jitter()))
        pause = min(_LONGEST_PAUSE, 2 * pause)


def _is_in_vain(find: Callable[[], str], present: Any, is_given_up: Callable[[], bool]) -> bool:
    return is_given_up() or _identity(find()) != present


def _identity(address: str) -> tuple[str, int, int] | None:
    """Which file a socket's path is just now."""
    try:
        status = os.stat(address)
    except (OSError, ValueError):
        return None
    return address, status.st_dev, status.st_ino


def jitter() -> float:
    """0.5 to 1: clients that lost their broker together must not come back together."""
    return 0.5 + int.from_bytes(os.urandom(2)) / 0x1FFFF


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
    unavailable = BrokerUnavailable(
        text if MEANINGS[code].blame is not Blame.CLIENT else f"the broker ended it: {text}"
    )
    unavailable.may_come = code is Code.STOPPING  # the next one
    return unavailable
