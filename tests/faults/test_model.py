"""Real pools on a real broker against a dictionary: what was published is what is read, each
ticket once, and everything comes back.

Three seats in this process do whatever comes to Hypothesis's mind, with sizes of every
strategy, on a pool so small that it runs dry. The model says of each handle what it names and
whether its ticket is pending, open or done. Where the documentation leaves open how a used
handle is refused (its row may have been reused meanwhile), both are right.

A lease may be refused, and when is a matter of time: what comes back comes through other
threads. So that Hypothesis sees the same machine each time, rules give a result all the same,
*empty* (`thing` is None), and what is done with it is nothing.

Not covered: several threads and processes, deaths (tests/faults/test_kills.py).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from patience import settle

import shmpool
from shmpool import Strategy
from shmpool.protocol.handle import HANDLE_BYTES, Handle
from shmpool.protocol.sizing import KIB
from shmpool.stats import query, query_invariants

SEATS = 3
SETTINGS = {
    "memory_limit": "4MiB", "max_clients": 64, "pooled_sizes": ["4KiB", "16KiB", "64KiB"], "chunk_sizes": ["16KiB"],
    "medium_object_threshold": "8KiB", "large_object_threshold": "64KiB", "very_large_object_threshold": "256KiB",
}  # fmt: skip

sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 8191, 8192, 20_000, 65_535, 65_536, 100_000, 262_143, 262_144, 9**6])
seats = st.integers(0, SEATS - 1)


class Ticket(Enum):
    PENDING = auto()
    OPEN = auto()
    DONE = auto()


@dataclass(eq=False)
class Published:
    """What the model knows of one handle; *handle* is None of an empty one."""

    handle: Handle | None
    content: bytes = b""
    ticket: Ticket = Ticket.PENDING


@dataclass(eq=False)
class Held:
    """A lease or a buffer, and what is in it; *thing* is None of an empty one, or when it is over."""

    seat: int
    thing: Any = None
    content: bytes = b""
    published: Published | None = None


@dataclass(eq=False)
class Kept:
    """A view that outlives its lease or its buffer; *array* is None of an empty one."""

    array: np.ndarray[Any, Any] | None
    content: bytes
    #: Of a buffer's view: its ticket stays open as long as the view lives.
    published: Published | None = None


def check_refused(pool: shmpool.Pool, one: Published) -> None:
    """A ticket that is not pending: the documents allow both errors once it was closed."""
    allowed = (shmpool.HandleUsed,) if one.ticket is Ticket.OPEN else (shmpool.HandleUsed, shmpool.StaleHandle)
    assert one.handle is not None
    with pytest.raises(allowed):
        pool.open(one.handle)


class Machine(RuleBasedStateMachine):
    broker: shmpool.Broker

    leases = Bundle("leases")
    handles = Bundle("handles")
    buffers = Bundle("buffers")
    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self.pools = [self.broker.connect() for _ in range(SEATS)]
        self.held: list[Held] = []
        self.kept: list[Kept] = []
        self.published: list[Published] = []
        self.fillings = 0

    # --- writing -------------------------------------------------------------------------------------

    @rule(target=leases, seat=seats, nbytes=sizes)
    def lease(self, seat: int, nbytes: int) -> Held:
        return self._lease(seat, nbytes, Strategy.ADAPTIVE)

    @rule(target=leases, seat=seats, nbytes=sizes, strategy=st.sampled_from(list(Strategy)))
    def lease_by_strategy(self, seat: int, nbytes: int, strategy: Strategy) -> Any:
        if strategy is Strategy.POOLED and nbytes > 64 * KIB:
            with pytest.raises(shmpool.PoolingRefused):
                self.pools[seat].lease(nbytes, strategy=strategy, timeout=0)
            return multiple()
        return self._lease(seat, nbytes, strategy)

    def _lease(self, seat: int, nbytes: int, strategy: Strategy) -> Held:
        """With content of its own. Refused only when much is out."""
        try:
            lease = self._lease_at_once(seat, nbytes, strategy)
        except shmpool.LeaseTimeout:
            assert query(self.broker.address).memory["held"] > 2048 * KIB, "refused although little is held"
            return Held(seat)
        assert lease.nbytes == nbytes == len(lease.view)
        self.fillings += 1
        content = (self.fillings.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]
        if self.fillings % 2:
            lease.write(content)
        else:
            lease.view[:] = content
        self.held.append(Held(seat, lease, content))
        return self.held[-1]

    def _lease_at_once(self, seat: int, nbytes: int, strategy: Strategy) -> shmpool.Lease:
        """Asked again where the broker got no processor for as long as who does not wait gives it."""
        while True:
            try:
                return self.pools[seat].lease(nbytes, strategy=strategy, timeout=0)
            except shmpool.LeaseTimeout as error:
                if "did not answer" not in str(error):
                    raise

    def _give_up(self, held: Held) -> Any:
        """Its lease or buffer is about to be over."""
        self.held.remove(held)
        thing, held.thing = held.thing, None
        return thing

    @rule(target=handles, lease=consumes(leases), tickets=st.sampled_from([None, 1, 2, 13]))
    def publish(self, lease: Held, tickets: int | None) -> Any:
        return multiple(*self._publish(lease, tickets))

    def _publish(self, lease: Held, tickets: int | None) -> list[Published]:
        if lease.thing is None:
            return [Published(None)] * (tickets or 1)
        thing = self._give_up(lease)
        handles = [thing.publish()] if tickets is None else thing.publish_many(tickets)
        with pytest.raises(shmpool.LeaseReleased):
            thing.publish()
        made = [Published(handle, lease.content) for handle in handles]
        assert [handle.nbytes for handle in handles] == [len(lease.content)] * (tickets or 1)
        self.published += made
        return made

    @rule(target=views, lease=consumes(leases))
    def release_lease_and_keep_a_view(self, lease: Held) -> Kept:
        kept = self._keep(lease)
        self.release_lease(lease)
        return kept

    @rule(target=views, lease=consumes(leases))
    def publish_and_keep_a_view(self, lease: Held) -> Kept:
        """Readers read while the writer still has it; the slot is not used again before both
        have done."""
        kept = self._keep(lease)
        self._publish(lease, 2)
        return kept

    @rule(lease=consumes(leases))
    def release_lease(self, lease: Held) -> None:
        if lease.thing is not None:
            thing = self._give_up(lease)
            thing.release()
            thing.release()
            with pytest.raises(shmpool.LeaseReleased):
                _ = thing.view

    # --- reading -------------------------------------------------------------------------------------

    @rule(target=buffers, seat=seats, one=handles)
    def open(self, seat: int, one: Published) -> Held:
        if one.handle is None:
            return Held(seat)
        if one.ticket is not Ticket.PENDING:
            check_refused(self.pools[seat], one)
            return Held(seat)
        buffer = self.pools[seat].open(Handle.from_bytes(bytes(one.handle)))
        one.ticket = Ticket.OPEN
        self.held.append(Held(seat, buffer, one.content, one))
        for pool in self.pools:
            check_refused(pool, one)
        with pytest.raises(TypeError):
            buffer.view[:0] = b""
        return self.held[-1]

    @rule(buffer=consumes(buffers))
    def release_buffer(self, buffer: Held) -> None:
        if buffer.thing is not None:
            thing = self._give_up(buffer)
            thing.release()
            assert buffer.published
            if not any(kept.published is buffer.published for kept in self.kept):
                buffer.published.ticket = Ticket.DONE
                check_refused(self.pools[buffer.seat], buffer.published)
            with pytest.raises(shmpool.LeaseReleased):
                _ = thing.view

    @rule(target=views, buffer=consumes(buffers))
    def release_buffer_and_keep_a_view(self, buffer: Held) -> Kept:
        """The ticket stays open until the view is gone."""
        kept = self._keep(buffer)
        self.release_buffer(buffer)
        if kept.published is not None:
            check_refused(self.pools[buffer.seat], kept.published)
        return kept

    @rule(view=consumes(views))
    def drop_view(self, view: Kept) -> None:
        if view.array is not None:
            self.kept.remove(view)
            view.array = None
            if view.published is not None:
                view.published.ticket = Ticket.DONE

    @rule(seat=seats, one=handles)
    def discard(self, seat: int, one: Published) -> None:
        if one.handle is None:
            return
        if one.ticket is Ticket.PENDING:
            self.pools[seat].discard(one.handle)
            one.ticket = Ticket.DONE
        else:
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                self.pools[seat].discard(one.handle)

    @rule(seat=seats, like=handles, bit=st.integers(0, HANDLE_BYTES * 8 - 1))
    def open_a_handle_that_nobody_made(self, seat: int, like: Published, bit: int) -> None:
        if like.handle is None:
            return
        raw = bytearray(like.handle)
        raw[bit // 8] ^= 1 << bit % 8
        if bytes(raw) not in {bytes(one.handle) for one in self.published}:
            with pytest.raises((shmpool.StaleHandle, shmpool.HandleUsed)):
                self.pools[seat].open(Handle(raw))

    # --- coming and going ----------------------------------------------------------------------------

    @rule(seat=seats)
    def close_and_connect_again(self, seat: int) -> None:
        """What it had published stays for its readers, and its views stay as they are."""
        for held in [held for held in self.held if held.seat == seat]:
            (self.release_buffer if held.published else self.release_lease)(held)
        self.pools[seat].close()
        with pytest.raises(shmpool.PoolClosed):
            self.pools[seat].lease(1)
        self.pools[seat] = self.broker.connect()

    # --- what always holds -----------------------------------------------------------------------------

    def _keep(self, held: Held) -> Kept:
        if held.thing is None:
            return Kept(None, b"")
        self.kept.append(Kept(np.frombuffer(held.thing.view, dtype=np.uint8), held.content, held.published))
        return self.kept[-1]

    @invariant()
    def every_byte_is_as_it_was_written(self) -> None:
        for held in self.held:
            assert held.thing.view == held.content
        for kept in self.kept:
            assert kept.array is not None and kept.array.tobytes() == kept.content

    def teardown(self) -> None:
        """Everybody lets go; then nothing is left, and the broker's account is exact."""
        try:
            for held in list(self.held):
                (self.release_buffer if held.published else self.release_lease)(held)
            for kept in list(self.kept):
                self.drop_view(kept)
            for one in self.published:
                if one.ticket is Ticket.PENDING:
                    assert one.handle is not None
                    with self.pools[0].open(one.handle) as buffer:
                        assert buffer.view == one.content
        finally:
            self.held.clear()
            self.kept.clear()
            for pool in self.pools:
                pool.close()
        assert_all_is_back(self.broker.address)


def assert_all_is_back(address: str) -> None:
    """Also the memory: a segment that was asked for ahead may have been on its way when its client
    left, and is removed when it is made."""

    def left() -> list[Any]:
        stats = query(address)
        return [*filter(None, (stats.active_buffers, unaccounted(stats))), *stats.clients]

    assert not settle(left), "buffers and bytes that did not come back, and seats"
    assert query_invariants(address) is None


def unaccounted(stats: shmpool.Stats) -> int:
    """Bytes that are held beside the tables and the warm slots."""
    return stats.memory["held"] - stats.memory["overhead"] - sum(tier.warm * tier.size for tier in stats.tiers)


@pytest.fixture
def machine() -> Iterator[type[Machine]]:
    # `Pool.close` looks at every object of the process: not at all those of the test suite.
    gc.collect()
    gc.freeze()
    try:
        with shmpool.Broker(**SETTINGS) as broker:
            yield type("Machine", (Machine,), {"broker": broker})
    finally:
        gc.unfreeze()


@pytest.mark.filterwarnings("ignore:a view of a published or released buffer:ResourceWarning")
def test_pools_do_what_a_dictionary_would(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10, stateful_step_count=40, derandomize=True, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        ),
    )  # fmt: skip
