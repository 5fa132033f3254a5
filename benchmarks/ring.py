"""Workers in a ring: each makes an object, sends its token to the next, and takes the one
that came from the last. What every step took is noted by the size's category."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from multiprocessing.shared_memory import SharedMemory
from struct import Struct
from typing import Any, Protocol

import shmpool

from .channel import Channel
from .cores import pin_to_core
from .crew import Answer, wait_until
from .mixes import LARGEST, Mix, sizes_of
from .plan import paged
from .units import KIB, MIB

#: Category -> the size below which an object is of it, with the default thresholds.
CATEGORIES = {"small": 32 * KIB, "medium": 256 * KIB, "large": MIB, "very large": float("inf")}
#: A lease is made, a buffer opened, a buffer released; the hand-off is all from before the
#: lease to after the release, both copies and the token's way included.
STEPS = ("lease", "open", "release", "hand-off")

#: (category, step) -> seconds.
Samples = dict[tuple[str, str], "array[float]"]

_TOKEN = Struct("<24sQd")
_END = bytes(_TOKEN.size)
#: Sizes that a worker goes through again and again.
_SIZES = 4096


class System(Protocol):
    """A way to hand memory over. What is leased and opened has a view."""

    def lease(self, nbytes: int) -> Any: ...
    def view(self, held: Any) -> memoryview: ...
    def publish(self, lease: Any) -> bytes: ...
    def open(self, token: bytes) -> Any: ...
    def release(self, buffer: Any) -> None: ...


class Pooled:
    """shmpool."""

    def __init__(self, pool: shmpool.Pool) -> None:
        self.lease, self._open = pool.lease, pool.open

    def view(self, held: shmpool.Lease | shmpool.Buffer) -> memoryview:
        return held.view

    def publish(self, lease: shmpool.Lease) -> bytes:
        return lease.publish()

    def open(self, token: bytes) -> shmpool.Buffer:
        return self._open(shmpool.Handle(token))

    def release(self, buffer: shmpool.Buffer) -> None:
        buffer.release()


class Fresh:
    """A segment for each object; `release` unlinks it."""

    def lease(self, nbytes: int) -> SharedMemory:
        return SharedMemory(create=True, size=nbytes)

    def view(self, held: SharedMemory) -> memoryview:
        return held.buf

    def publish(self, lease: SharedMemory) -> bytes:
        lease.close()
        return lease.name.encode()

    def open(self, token: bytes) -> SharedMemory:
        return SharedMemory(token.rstrip(b"\0").decode())

    def release(self, buffer: SharedMemory) -> None:
        buffer.close()
        buffer.unlink()


def in_ring(
    channels: list[Channel],
    systems: Callable[[], AbstractContextManager[dict[str, System]]],
    mix: Mix,
    *,
    has_cores: bool,
) -> Callable[[int], AbstractContextManager[Answer]]:
    """What starts a worker of a crew as large as there are channels. A question is (system,
    moment to begin, seconds), the answer its samples. *has_cores*: there is a core for each."""

    @contextmanager
    def start(place: int) -> Iterator[Answer]:
        if has_cores:
            pin_to_core(place)
        inbox, outbox = channels[place], channels[(place + 1) % len(channels)]
        sizes = cycle(sizes_of(mix, _SIZES, seed=place))
        source, target = bytes(LARGEST), paged(LARGEST)
        with systems() as known:

            def answer(question: tuple[str, float, float]) -> Samples:
                name, begin, seconds = question
                wait_until(begin)
                return _go_round(known[name], inbox, outbox, sizes, source, target, begin + seconds)

            yield answer

    return start


def _go_round(
    system: System,
    inbox: Channel,
    outbox: Channel,
    sizes: Iterator[int],
    source: bytes,
    target: memoryview,
    until: float,
) -> Samples:
    samples = {(category, step): array("d") for category in CATEGORIES for step in STEPS}
    clock, source_view = time.perf_counter, memoryview(source)

    def take(message: bytes) -> None:
        token, nbytes, made = _TOKEN.unpack(message)
        started = clock()
        buffer = system.open(token)
        opened = clock()
        target[:nbytes] = system.view(buffer)[:nbytes]
        read = clock()
        system.release(buffer)
        released = clock()
        category = category_of(nbytes)
        samples[category, "open"].append(opened - started)
        samples[category, "release"].append(released - read)
        samples[category, "hand-off"].append(released - made)

    message = b""
    while message != _END and (started := clock()) < until:
        nbytes = next(sizes)
        lease = system.lease(nbytes)
        samples[category_of(nbytes), "lease"].append(clock() - started)
        system.view(lease)[:nbytes] = source_view[:nbytes]
        outbox.send(_TOKEN.pack(system.publish(lease), nbytes, started))
        if (message := inbox.receive(_TOKEN.size)) != _END:
            take(message)
    outbox.send(_END)
    while message != _END:
        if (message := inbox.receive(_TOKEN.size)) != _END:
            take(message)
    return samples


def category_of(nbytes: int) -> str:
    """The category of a size, with the default thresholds."""
    return next(category for category, below in CATEGORIES.items() if nbytes < below)
