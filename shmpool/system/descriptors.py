"""Descriptors that nobody closes under who is just using them.

A number that was closed is soon another file's. A `Descriptor` is closed when nothing refers to
it any more, and a call that is using it does. Who closes puts `CLOSED` in its place: what
asks it for its number gets an error that says so.
"""

from __future__ import annotations

import os
from functools import partial

from ..errors import PoolClosed
from . import libc
from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn


class Descriptor(int):
    """An open descriptor; it closes itself. One that somebody has closed, as who forks may, is no error."""

    #: Its finalizer is a C callable, made and called in C: what a signal handler raises in Python code that
    #: a finalizer runs is thrown away.
    __del__: Callable[..., None] = property(partial(partial, libc.close))  # type: ignore[assignment]


class Closed:
    """In the place of a descriptor that its owner has closed."""

    def fileno(self) -> NoReturn:
        raise PoolClosed("the pool is closed; connect() makes a new one")

    __index__ = fileno


CLOSED: Final = Closed()


def open_owned(opener: Callable[..., int], *arguments: Any) -> Descriptor:
    """What *opener*, a function in C, opens. In one step: between two, an exception would lose it."""
    return next(map(Descriptor, map(opener, *[(argument,) for argument in arguments])))


def make_eventfd() -> Descriptor:
    """An eventfd that never blocks."""
    return open_owned(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def signal(eventfd: Descriptor | Closed) -> None:
    """Wake who polls an eventfd; nothing once it is closed. From anywhere."""
    try:
        os.eventfd_write(eventfd, 1)  # type: ignore[arg-type]  # whatever has a fileno
    except own(OSError, PoolClosed):
        pass  # it is awake, or gone


def drain(eventfd: Descriptor | Closed) -> None:
    """Take back what `signal` has written."""
    try:
        os.eventfd_read(eventfd)  # type: ignore[arg-type]
    except own(OSError, PoolClosed):
        pass
