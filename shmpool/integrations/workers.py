"""A worker of an executor: takes a task out of its pipe, does it, sends the result back, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import _ExceptionWithTraceback  # what its users know a remote traceback by
from functools import partial
from logging import getLogger
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ..errors import BrokerUnavailable, HandleUsed, ShmpoolError, StaleHandle
from ..objects.encoding import PicklerClass
from ..pools import Pool, of_address
from ..system.outside import own, own_or_called
from . import payloads

#: What a worker sends first if its initializer raised.
FAILED = b"\3"


class Duty(NamedTuple):
    """What a worker is told at its start."""

    address: str
    pickler: PicklerClass | None
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks: int | None


def work(pipe: Connection, duty: Duty, inherited: Sequence[Connection]) -> None:
    """The life of a worker. *inherited* are the parent's ends of pipes, which a forked child has too: as long as
    it does, no worker would see the parent's end."""
    for other in inherited:
        other.close()
    if duty.initializer is not None:
        try:
            duty.initializer(*duty.initargs)
        except BaseException:
            getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
            pipe.send_bytes(FAILED)
            return
    pool = partial(of_address, duty.address)
    done = 0
    try:
        most = duty.max_tasks
        while True:
            frame = pipe.recv_bytes()
            if not frame:
                break
            pipe.send_bytes(_answer(frame, pool, duty.pickler))
            del frame
            done += 1
            if done == most:
                break
    except own(EOFError, OSError):
        return  # the parent is gone
    except KeyboardInterrupt:
        return  # all of us were interrupted


def _answer(frame: bytes, pool: Callable[[], Pool], pickler: PicklerClass | None) -> bytes:
    """Do one task; the frame to send back."""
    try:
        function, args, kwargs = payloads.unpacked(frame, pool)
    except own_or_called(BrokerUnavailable, HandleUsed, StaleHandle):
        return payloads.UNREAD
    except BaseException as error:
        return _packed((True, _with_traceback(error)), pool, pickler)
    try:
        outcome = False, function(*args, **kwargs)
    except BaseException as error:
        outcome = True, _with_traceback(error)
    del function, args, kwargs  # their memory may be what the result needs
    return _packed(outcome, pool, pickler)


def _with_traceback(error: BaseException) -> Any:
    return _ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[arg-type]


def _packed(outcome: tuple[bool, Any], pool: Callable[[], Pool], pickler: PicklerClass | None) -> bytes:
    try:
        source = payloads.encoded(outcome, pickler)
    except BaseException as error:  # the result, or the exception, cannot be pickled: this says why
        source = payloads.encoded((True, _with_traceback(error)), pickler)
    if source.nbytes >= payloads.INLINE_BELOW:
        try:
            return payloads.leased(source, pool(), 1)[0]
        except own(ShmpoolError, MemoryError):
            pass  # full, or there is no broker any more: it takes the long way
    return payloads.inline(source)
