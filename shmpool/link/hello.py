"""Coming to a broker: its socket is dialled, and greeted; one that is still to come is waited for."""

from __future__ import annotations

import errno
import os
import socket
import time
from functools import partial

from .. import hints
from ..errors import (
    BrokerUnavailable,
    ConfigError,
    LocalProtocolError,
    QuotaExceeded,
    RemoteProtocolError,
    ShmpoolError,
)
from ..protocol.codes import Code
from ..protocol.meanings import MEANINGS, Blame
from ..protocol.messages import (
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Fault,
    Hello,
    Message,
    Recall,
    Role,
    Settings,
    Welcome,
)
from ..system.limits import explain
from ..system.outside import own
from .connection import Connection, ConnectionEnded, Interruption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

#: Seconds until a full backlog is tried again: at first, and at the longest.
_BACKLOG_PAUSE: Final = 0.005
_LONGEST_BACKLOG_PAUSE: Final = 0.04
#: A broker that is still to come is looked for after pauses that grow, in seconds.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.1
#: A broker that listens has so long to answer, whatever the deadline is.
LEAST_ANSWER: Final = 0.04
#: Errors of a connect after which the broker may still come.
_NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EAGAIN, errno.ENOTDIR)


def dial(address: str, deadline: float, interruption: Interruption | None = None) -> Connection:
    """Connect to a broker's socket. Raises BrokerUnavailable; its ``may_come`` says whether another
    try can help."""
    try:
        return reach(address, deadline, interruption)
    except own(OSError) as error:  # it says all that the cause says
        raise _unavailable(hints.unreachable(address, error), may_come=error.errno in _NOT_YET) from None


def _unavailable(said: str, *, may_come: bool) -> BrokerUnavailable:
    unavailable = BrokerUnavailable(said)
    unavailable.may_come = may_come
    return unavailable


def reach(address: str, deadline: float, interruption: Interruption | None = None) -> Connection:
    """The same for who tries again and again, and tells nobody why it failed: raises OSError as it
    comes, and BrokerUnavailable where there is no socket to be had."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except own(OSError) as error:
        raise BrokerUnavailable(f"no socket for the broker at {address}: {explain(error)}") from error
    try:
        connection, pause = Connection(sock), _BACKLOG_PAUSE
        while True:
            try:
                sock.connect(address)
                break
            except own(BlockingIOError):  # so many connect just now that the broker's backlog is full
                if time.monotonic() > deadline or (interruption is not None and interruption.is_called()):
                    raise
                # Each waits another while: who came first must not meet who came last again and again.
                time.sleep(pause * jitter())
                pause = min(_LONGEST_BACKLOG_PAUSE, 1.5 * pause)
    except BaseException:
        sock.close()
        raise
    return connection


def listens(address: str) -> bool:
    """Whether somebody listens at a socket's path; a full backlog is a yes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except own(BlockingIOError):
            return True
        except own(OSError):
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
        while True:
            if messages:
                break
            for message in connection.receive_one(deadline, interruption):
                # Recalls and settings may come before and behind; who waits is seen by the wanted flags.
                if isinstance(message, Recall | Settings):
                    continue
                if isinstance(message, Fault):  # maybe right behind the welcome: the broker stops
                    raise fault_error(message)
                messages.append(message)
        answer = messages[0]
        if not isinstance(answer, Welcome) or len(messages) > 1:
            raise RemoteProtocolError(
                f"the broker answered Hello with {[type(message).__name__ for message in messages]}"
            )
        return answer
    except own(ConnectionEnded) as error:
        connection.close()
        said = f"the broker{address} did not answer Hello: {error}; it is stopped, or another program listens there"
        raise _unavailable(said, may_come=True) from None
    except own(RemoteProtocolError) as error:
        connection.close()
        raise RemoteProtocolError(f"{error}; is what listens{address} a shmpool broker?") from None
    except BaseException:
        connection.close()
        raise


def await_welcome(
    find: Callable[[], str], nonce: int, deadline: float, is_closed: Callable[[], bool]
) -> tuple[str, Connection, Welcome]:
    """Connect as a worker that has no seat yet to the broker at the address that *find* says, which
    may be still to come: nobody listens, or who listens does not answer yet. Tries at least once,
    and until *deadline*. Raises like `dial` and `greet`."""
    pause = _FIRST_PAUSE
    while True:
        address = find()
        present = _identity(address)
        # Another broker may take the socket's place while this one is silent.
        moved = Interruption(partial(_is_in_vain, find, present, is_closed))
        try:
            connection = dial(address, deadline, moved)
            # One that is there has a moment to answer, whatever the deadline is.
            answers = max(deadline, time.monotonic() + LEAST_ANSWER)
            return address, connection, greet(connection, Role.WORKER, nonce, 0, 0, answers, moved)
        except own(BrokerUnavailable) as error:
            left = deadline - time.monotonic()
            if not error.may_come or left <= 0 or is_closed():
                raise
        time.sleep(min(left, pause * jitter()))
        pause = min(_LONGEST_PAUSE, 2 * pause)


def _is_in_vain(find: Callable[[], str], present: Any, is_closed: Callable[[], bool]) -> bool:
    return is_closed() or _identity(find()) != present


def _identity(address: str) -> tuple[str, int, int] | None:
    """Which file a socket's path is just now."""
    try:
        status = os.stat(address)
    except own(OSError, ValueError):
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
