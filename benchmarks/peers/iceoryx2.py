"""iceoryx2: publish-subscribe over shared memory, samples loaned as slices of bytes and
sent without a copy. The subscriber polls, or is woken by an event for each object.

Its fastest way to the bytes in Python is their bare address, which is what is measured
unless it is asked for the memoryviews that its documentation shows."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..plan import Plan
from .base import Absent, Peer

try:
    import iceoryx2 as iox2
except ImportError as error:
    raise Absent(f"iceoryx2 is not installed ({error})") from error

MOST_IN_FLIGHT = 16
#: In one long run a wake-up never came, and the pair hung in an unbounded wait.
LONGEST_WAIT = iox2.Duration.from_millis(100)


class Iceoryx2(Peer):
    token_bytes = 0

    def __init__(self, has_events: bool = False, has_views: bool = False, **_: Any) -> None:
        self._has_events = has_events
        self._has_views = has_views
        self._name = f"shmpool-benchmarks/{os.getpid()}"
        self._publisher: Any = None
        self._publisher_of = 0

    def _begin(self) -> None:
        iox2.set_log_level(iox2.LogLevel.Error)
        self._node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        self._samples = (
            self._node.service_builder(iox2.ServiceName.new(self._name))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .max_publishers(1)
            .max_subscribers(1)
            .subscriber_max_buffer_size(MOST_IN_FLIGHT)
            .enable_safe_overflow(False)
            .open_or_create()
        )
        self._events = self._node.service_builder(iox2.ServiceName.new(self._name)).event().open_or_create()

    def begin_producer(self) -> None:
        self._begin()
        self._notifier = self._events.notifier_builder().create() if self._has_events else None

    def begin_consumer(self) -> None:
        self._begin()
        self._subscriber = self._samples.subscriber_builder().buffer_size(MOST_IN_FLIGHT).create()
        self._listener = self._events.listener_builder().create() if self._has_events else None

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        """A publisher has memory for one largest size, so each size gets a new one."""
        if self._publisher_of != plan.nbytes:
            self._replace_publisher(plan.nbytes)
        write = _write_view if self._has_views else _write_address
        send = write(self._publisher.loan_slice_uninit, source, plan)
        return _then(send, self._notifier.notify) if self._notifier is not None else send

    def _replace_publisher(self, nbytes: int) -> None:
        if self._publisher is not None:
            self._publisher.delete()
        self._publisher_of = nbytes
        self._publisher = (
            self._samples.publisher_builder()
            .initial_max_slice_len(nbytes)
            .allocation_strategy(iox2.AllocationStrategy.Static)
            .create()
        )

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        read = _read_view if self._has_views else _read_address
        return read(self._receiver(plan.spin), target, plan)

    def _receiver(self, spin: float) -> Callable[[], Any]:
        receive = self._subscriber.receive
        if self._listener is None:
            return _polling(receive)
        return _waiting(receive, partial(self._listener.timed_wait, LONGEST_WAIT), spin)


def _polling(receive: Callable[[], Any]) -> Callable[[], Any]:
    def poll() -> Any:
        while (sample := receive()) is None:
            pass
        return sample

    return poll


def _waiting(receive: Callable[[], Any], wait: Callable[[], object], spin: float) -> Callable[[], Any]:
    clock = time.perf_counter

    def sleep() -> Any:
        while (sample := receive()) is None:
            wait()
        return sample

    def poll_then_sleep() -> Any:
        if (sample := receive()) is not None:
            return sample
        until = clock() + spin
        while (sample := receive()) is None:
            if clock() >= until:
                wait()
        return sample

    return poll_then_sleep if spin else sleep


def _then(send: Callable[[], None], notify: Callable[[], object]) -> Callable[[], None]:
    def send_and_notify() -> None:
        send()
        notify()

    return send_and_notify


# --- by bare addresses -----------------------------------------------------------------------


def _write_address(loan: Callable[[int], Any], source: bytes, plan: Plan) -> Callable[[], None]:
    move, nbytes = ctypes.memmove, plan.nbytes
    written = nbytes if plan.fills else 1

    def send() -> None:
        sample = loan(nbytes)
        move(sample.payload_ptr, source, written)
        sample.assume_init().send()

    return send


def _read_address(receive: Callable[[], Any], target: memoryview, plan: Plan) -> Callable[[], None]:
    move, byte_at, nbytes = ctypes.memmove, ctypes.c_ubyte.from_address, plan.nbytes
    address = ctypes.addressof(ctypes.c_char.from_buffer(target))

    def drain() -> None:
        sample = receive()
        move(address, sample.payload_ptr, nbytes)
        sample.delete()

    def touch() -> None:
        sample = receive()
        byte_at(sample.payload_ptr).value  # noqa: B018
        sample.delete()

    def touch_both() -> None:
        sample = receive()
        address = sample.payload_ptr
        byte_at(address).value  # noqa: B018
        byte_at(address + nbytes - 1).value  # noqa: B018
        sample.delete()

    return drain if plan.drains else touch_both if plan.fills else touch


# --- by the memoryviews of its payloads --------------------------------------------------------


def _write_view(loan: Callable[[int], Any], source: bytes, plan: Plan) -> Callable[[], None]:
    nbytes = plan.nbytes

    def fill() -> None:
        sample = loan(nbytes)
        sample.payload().as_memory_view().cast("B")[:] = source
        sample.assume_init().send()

    def touch() -> None:
        sample = loan(nbytes)
        sample.payload().as_memory_view().cast("B")[0] = 1
        sample.assume_init().send()

    return fill if plan.fills else touch


def _read_view(receive: Callable[[], Any], target: memoryview, plan: Plan) -> Callable[[], None]:
    def drain() -> None:
        sample = receive()
        target[:] = sample.payload().as_memory_view().cast("B")
        sample.delete()

    def touch() -> None:
        sample = receive()
        sample.payload().as_memory_view().cast("B")[0]
        sample.delete()

    def touch_both() -> None:
        sample = receive()
        view = sample.payload().as_memory_view().cast("B")
        view[0]
        view[-1]
        sample.delete()

    return drain if plan.drains else touch_both if plan.fills else touch
