"""One client's connection: frames in, messages out, and every bound that keeps a peer in
its place.

Covers framing, turns (so many frames or so much time, then the others), deadlines for the hello and for
half a frame, and the bound on what is not read. Does not know what messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from time import thread_time
from typing import Final, Protocol, cast

from shmpool.protocol.codes import Code
from shmpool.protocol.framing import FrameDecoder, FrameError, encode_frame
from shmpool.protocol.messages import (
    FROM_CLIENT,
    MAX_TEXT,
    Answer,
    Fault,
    Message,
    MessageError,
    Query,
    decode,
    encode,
)
from shmpool.protocol.sizing import KIB, MIB

from ..core.events import Peer
from .turns import Turns

#: Frames of one process that are handled within `REST` before others have their turn; a long one, which names
#: many rows, counts as one for so many bytes.
FRAMES_PER_TURN: Final = 64
BYTES_PER_FRAME: Final = 64
#: Seconds of CPU after which a turn ends as well: what a short frame asks for may be much.
CPU_PER_TURN: Final = 0.001
#: One that is shorter (bytes) does not use a turn up.
SHORT_FRAME: Final = (FRAMES_PER_TURN - 1) * BYTES_PER_FRAME
#: Seconds that a peer is not listened to when it dribbles (two reads in a row that end no
#: frame), doubled each time. A sound client's frames arrive whole.
FIRST_LULL: Final = 0.005
LONGEST_LULL: Final = 0.25
#: Questions that a peer may have under way; until one is answered it is not listened to.
MOST_QUESTIONS: Final = 16
#: Seconds from connecting to the first message.
HELLO_DEADLINE: Final = 5.0
#: Seconds for the rest of a frame, and for a full output buffer to move.
STALL_DEADLINE: Final = 10.0
#: Seconds for the last bytes of a connection that we end.
CLOSE_GRACE: Final = 1.0
#: What a peer may leave unread, in bytes, ...
OUTPUT_LIMIT: Final = 256 * KIB
#: ... besides the answers that it asked for itself.
ANSWER_LIMIT: Final = 32 * MIB
#: From here on a peer is not listened to until it has read something.
HIGH_WATER: Final = 64 * KIB

log = logging.getLogger(__name__)


class Owner(Protocol):
    """What a connection tells the server, always from the loop's thread."""

    @property
    def turns(self) -> Turns:
        """When it has its next turn, once it has used one up."""

    def on_connected(self, connection: Connection) -> None:
        """It is open, and admitted."""

    def on_message(self, connection: Connection, message: Message) -> None:
        """A message that the schema accepts."""

    def on_lost(self, connection: Connection) -> None:
        """It is gone; the last that is heard of it."""


class Connection(asyncio.Protocol):
    """A connection by its *number*, with the *peer*'s identity as the kernel gave it.

    *pidfd* (-1: the process is gone; None: it cannot be watched) is closed with it unless it
    was taken.
    """

    def __init__(self, owner: Owner, number: int, peer: Peer, pidfd: int | None) -> None:
        self.number: Final = number
        self.peer: Final = peer
        self._owner = owner
        self._pidfd = pidfd
        self._decoder = FrameDecoder()
        self._frames: Iterator[bytes] | None = None
        self._greeted = False
        self._share = owner.turns.join(peer)
        self._is_resting = False
        #: 0, or how many times the first lull the next one is.
        self._dribbles = 0
        self._closing = False
        self._output_is_full = False
        self._questions = 0
        self._allowance = OUTPUT_LIMIT
        self._input_timer: asyncio.TimerHandle | None = None
        self._output_timer: asyncio.TimerHandle | None = None

    # --- asyncio's side ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._input_timer = self._loop.call_later(HELLO_DEADLINE, self._too_late, "no hello", HELLO_DEADLINE)
        self._owner.on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came; reading pauses while any of them wait, so there is one batch at a time."""
        if self._closing:
            return
        frame = None if self._questions else self._decoder.only_frame(data)
        if frame is not None and len(frame) < SHORT_FRAME and self._share.is_left:
            self._work_on_one(frame)
        else:
            self._frames = self._decoder.feed(data)
            self._work()

    def eof_received(self) -> None:
        """The peer says no more; what it has coming must not keep the connection for ever."""
        self.close()

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._output_is_full = True
        self._transport.pause_reading()
        self._output_timer = self._loop.call_later(STALL_DEADLINE, self._abort_slow_reader)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._output_is_full = False
        self._cancel(self._output_timer)
        if not self._closing:
            self._go_on()

    def _go_on(self) -> None:
        if self._frames is not None:
            self._loop.call_soon(self._work)
        else:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Gone, by EOF, an error or our own doing."""
        self._closing, self._frames = True, None
        self._cancel(self._input_timer)
        self._cancel(self._output_timer)
        pidfd = self.take_pidfd()
        if pidfd is not None and pidfd >= 0:
            os.close(pidfd)
        self._owner.turns.leave(self.peer, self._share)
        self._owner.on_lost(self)

    @property
    def is_greeted(self) -> bool:
        """Whether the peer has said anything, or has not to any more."""
        return self._greeted or self._closing

    # --- the server's side ---------------------------------------------------------------------

    def take_pidfd(self) -> int | None:
        """The peer's pidfd, now the caller's to close; -1 when its process is gone, None when it
        cannot be watched."""
        pidfd, self._pidfd = self._pidfd, -1
        return pidfd

    def send(self, message: Message) -> None:
        """Send a message; a peer that lets too much pile up loses its connection. Nothing
        happens when it is closing."""
        if self._closing or self._transport.is_closing():
            return
        frame = encode_frame(encode(message))
        pending = self._transport.get_write_buffer_size()
        if pending == 0:
            self._allowance = OUTPUT_LIMIT
        if type(message) is Answer:
            self._allowance = min(self._allowance + len(frame), ANSWER_LIMIT)
            self._on_answer(message)
        elif type(message) is Fault:
            self._share.charge_ending()
        if pending + len(frame) > self._allowance:
            self._abort_slow_reader()
        else:
            self._transport.write(frame)

    def close(self) -> None:
        """End it once what was sent is written, or after a second."""
        if self._closing:
            return
        self._closing, self._frames = True, None
        self._cancel(self._input_timer)
        self._cancel(self._output_timer)
        self._output_timer = self._loop.call_later(CLOSE_GRACE, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        """End it now."""
        self._closing, self._frames = True, None
        self._transport.abort()

    def fail(self, code: Code, text: str) -> None:
        """Tell the peer why, and end it."""
        if not self._closing:
            log.info("ending connection %d of pid %d: %s: %s", self.number, self.peer.pid, code.name, text)
            self._end(Fault(code, text[:MAX_TEXT]))

    # --- inside ------------------------------------------------------------------------------------

    def _end(self, fault: Fault) -> None:
        self.send(fault)
        self.close()

    def _on_answer(self, answer: Answer) -> None:
        if answer.last:
            self._questions -= 1
            if self._questions == MOST_QUESTIONS - 1 and not self._output_is_full:
                self._go_on()

    @property
    def _has_its_turn(self) -> bool:
        return not self._output_is_full and self._questions < MOST_QUESTIONS

    def _work_on_one(self, frame: bytes) -> None:
        """The usual turn: of one short frame, with nothing before it and nothing behind it, so
        what `_work` and `_rest` would see to is as it was."""
        self._dribbles = 0
        share = self._share
        share.frames_left -= 1
        began = thread_time() if share.connections > 1 else 0.0  # one alone has others between its frames
        try:
            self._on_frame(frame)
        except MessageError as error:
            self.fail(Code.BAD_MESSAGE, str(error))
        if began:
            share.cpu_left -= thread_time() - began

    def _work(self) -> None:
        """Handle what is left of a turn's worth of the frames at hand."""
        if self._is_resting:
            return
        share, now = self._share, self._loop.time()
        share.renew(now, FRAMES_PER_TURN, CPU_PER_TURN)
        until = thread_time()
        try:
            while share.is_left and self._frames is not None and self._has_its_turn:
                frame = next(self._frames, None)
                if frame is None:
                    self._rest()
                    return
                share.frames_left -= 1 + len(frame) // BYTES_PER_FRAME
                self._on_frame(frame)
                since, until = until, thread_time()
                share.cpu_left -= until - since
        except FrameError as error:
            self.fail(Code.BAD_FRAME, str(error))
        except MessageError as error:
            self.fail(Code.BAD_MESSAGE, str(error))
        else:
            if self._frames is not None:
                self._transport.pause_reading()
                if self._has_its_turn:
                    self._is_resting = True
                    share.wait(now, self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_resting = False
        self._work()

    def _on_frame(self, frame: bytes) -> None:
        message = decode(frame, FROM_CLIENT)
        self._questions += type(message) is Query
        self._greeted = True
        if self._input_timer is not None:
            self._input_timer.cancel()
            self._input_timer = None
        self._owner.on_message(self, message)

    def _rest(self) -> None:
        """All whole frames are handled."""
        self._frames = None
        if self._greeted and self._decoder.incomplete and self._input_timer is None:
            self._input_timer = self._loop.call_later(STALL_DEADLINE, self._too_late, "half a frame", STALL_DEADLINE)
        if self._closing or self._output_is_full:
            return
        if not self._decoder.incomplete:
            self._dribbles = 0
            self._transport.resume_reading()
        elif self._dribbles == 0:
            self._dribbles = 1
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._loop.call_later(min(FIRST_LULL * self._dribbles, LONGEST_LULL), self._end_lull)
            self._dribbles *= 2

    def _end_lull(self) -> None:
        if not self._closing and not self._output_is_full:
            self._go_on()

    def _too_late(self, what: str, seconds: float) -> None:
        self.fail(Code.BAD_FRAME, f"{what} within {seconds:.0f} s")

    def _abort_slow_reader(self) -> None:
        pending = self._transport.get_write_buffer_size()
        log.warning("ending connection %d of pid %d (%s): %s, %d bytes unread", self.number, self.peer.pid,
                    self.peer.command, Code.SLOW_READER.name, pending)  # fmt: skip
        self.abort()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
