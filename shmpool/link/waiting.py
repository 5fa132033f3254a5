"""Waiting: how long a caller may say that it waits, and a thread that does."""

from __future__ import annotations

import threading
import time

from ..system.outside import own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from ..seat.slot import Slot
    from .requests import Request

    class Attempt(Protocol):
        """A try at something in a thread that must not wait, an event loop's: where it would, it ends with an exception
        of its own, and is made again when there is an answer."""

        def ask(self, request: Request) -> Slot | None:
            """What was answered; where nothing was asked yet, it is asked now, and the attempt ends."""

        def pause(self, seconds: float) -> bool:
            """The attempt ends; the next one is *seconds* later. False when there is no time left for that."""


#: In seconds; whoever wants to wait longer says infinity.
LONGEST_TIMEOUT: Final = 86_400.0
#: Types of numpy that are no number of seconds, but have a `__float__`: ``bool`` is theirs from 2.0 on.
_BOOLS: Final = ("bool", "bool_")
#: Who waits no longer still waits so long for the broker's word, in seconds: an answer takes a hundredth of it.
#: Once in each call of a user's, so whatever asks more than once looks at the time in between.
WORD: Final = 0.04
#: The longest that one wait of the kernel's is, in seconds: a deadline may be far away, or never.
LONGEST_WAIT: Final = 3600.0
#: A daemon thread waits so long for its end, in seconds: an exit handler may wait for that thread.
_LONGEST_LIFE: Final = 5.0


def check_timeout(timeout: Any) -> float:
    """*timeout* in seconds, as a float: 0 to a day, or infinity. Raises TypeError and ValueError."""
    try:
        if isinstance(timeout, str | bytes | bytearray | bool) or type(timeout).__name__ in _BOOLS:
            raise TypeError
        seconds = float(timeout)
    except own_or_called(TypeError, ValueError, OverflowError):
        raise TypeError(f"a timeout is a number of seconds or None, not {timeout!r}") from None
    if not (0 <= seconds <= LONGEST_TIMEOUT or seconds == float("inf")):
        raise ValueError(f"a timeout is 0 to {LONGEST_TIMEOUT:.0f} seconds, or infinity; this is {timeout!r}")
    return seconds


def check_ttl(ttl: Any) -> float:
    """*ttl* in seconds, as a float: above 0, up to a day, or infinity. Raises TypeError and ValueError."""
    try:
        if (seconds := check_timeout(ttl)) > 0:
            return seconds
        error: type[Exception] = ValueError
    except own_or_called(TypeError, ValueError) as raised:
        error = type(raised)
    raise error(f"a ttl is a number of seconds above 0, up to {LONGEST_TIMEOUT:.0f}, or infinity; this is {ttl!r}")


def await_the_end() -> bool:
    """Where a thread was refused: whether that is for the interpreter's end. CPython 3.12 starts none when the main one
    is over, and lets daemon threads go on beside exit handlers until it stops them in the middle of something: for them
    that is here, without a word."""
    if threading.main_thread().is_alive():
        return False
    if threading.current_thread().daemon:
        time.sleep(_LONGEST_LIFE)
    return True


class Waiter:
    """A thread that waits for its request."""

    __slots__ = ("_gate", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self, deadline: float) -> bool:
        """Wait for `wake` until *deadline* (monotonic seconds); False when it has passed."""
        left = deadline - time.monotonic()
        return self._gate.acquire(timeout=min(max(0.0, left), LONGEST_WAIT)) or left > LONGEST_WAIT

    def wake(self) -> None:
        """Let the thread look again."""
        try:
            if self._gate.locked():
                self._gate.release()
        except own(RuntimeError):
            pass  # another thread was faster
