"""A socket to a broker: framing, and sending that never blocks. How one comes by it: `hello`.

What the socket does not take at once waits in an outbox, which the helper empties. Who reads is
the link's business (`link`).
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from threading import get_ident

from ..errors import (
    RemoteProtocolError,
)
from ..protocol.framing import (
    FrameDecoder,
    FrameError,
    encode_frame,
)
from ..protocol.frozen import NamedTuple
from ..protocol.messages import (
    FROM_BROKER,
    Message,
    MessageError,
    decode,
    encode,
)
from ..system.descriptors import (
    Closed,
    Descriptor,
    drain,
)
from ..system.outside import let_through, own
from .waiting import LONGEST_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

#: Bytes that may wait for a broker that does not read, before the connection is given up.
MAX_OUTBOX = 1024 * 1024
_RECEIVE = 64 * 1024
#: Who waits for an answer and cannot be woken looks up so often, whether it still wants it.
_LOOK_UP: Final = 0.05


class Interruption(NamedTuple):
    """What ends a waiting early: *is_called* is asked when *wakeup* can be read, or else now and then."""

    is_called: Callable[[], bool]
    wakeup: Descriptor | Closed | None = None


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
        #: Under 0: who sends, by its thread.
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
        except own(OSError):
            return ""

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def poll_with(self, poll: select.poll) -> bool:
        """Register for polling: what arrives, and room for the outbox. False when it is
        closed, maybe by another thread just now."""
        try:
            poll.register(self._socket.fileno(), select.POLLIN | (select.POLLOUT if self.has_outbox else 0))
        except own(ValueError, OSError):
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
        me, sender, is_open = get_ident(), self._sender, True
        while is_open and (self._rest or self._outbox):
            try:
                if sender.setdefault(0, me) is not me:
                    return
                is_open = self._send_some()
            finally:
                if 0 in sender and sender[0] is me:
                    del sender[0]

    @property
    def is_sent_here(self) -> bool:
        """Whether this thread is just sending: in a call that this one has interrupted."""
        return self._sender.get(0) == get_ident()

    def _send_some(self) -> bool:
        """Send what waits; False when the socket takes no more."""
        if self._is_torn:  # an exception came while some of it was sent: nobody knows how much
            self._forget_outbox()
            self.shut_down()
            return False
        self._is_torn = True
        is_open = True
        try:
            rest = self._rest
            while True:
                if not (self._rest or self._outbox):
                    break
                rest = self._rest or self._outbox.popleft()
                self._rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
        except own(BlockingIOError):
            self._rest = rest
            is_open = False
            if len(rest) + sum(map(len, list(self._outbox))) > MAX_OUTBOX:
                self.shut_down()
        except own(OSError):
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
        except own(BlockingIOError):
            return []
        except own(OSError) as error:
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
        look_up = LONGEST_WAIT
        if interruption is not None and interruption.wakeup is not None:
            poll.register(interruption.wakeup, select.POLLIN)
        elif interruption is not None:
            look_up = _LOOK_UP
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(min(left, look_up) * 1000 + 1))
            if self._socket.fileno() in ready:
                self.flush()
                return self.receive()
            if interruption is not None:
                if interruption.wakeup in ready:
                    drain(interruption.wakeup)  # first: who wakes it in between is looked at the next time
                if interruption.is_called():
                    raise ConnectionEnded("it is waited for no longer")
        raise ConnectionEnded("timed out")

    def _decode(self, data: bytes) -> Iterator[Message]:
        try:
            for frame in self._decoder.feed(data):
                yield decode(frame, FROM_BROKER)
        except own(FrameError, MessageError) as error:
            let_through(error.__cause__)
            raise RemoteProtocolError(f"the broker broke the protocol: {error}") from error

    def shut_down(self) -> None:
        """Make the receiving side see the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except own(OSError):
            pass  # it was already

    def close(self) -> None:
        """Close it. What has not been read is discarded with it."""
        self._socket.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptor, without touching the parent's socket."""
        try:
            os.close(self._socket.detach())
        except own(OSError):
            pass  # somebody closed all that the child inherited
