"""The server with a core that is told what to answer: order, errors, and the timer."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from shell_helpers import Wire, new_pool_id, segments_of

from shmpool.protocol.ledger import FIRST_CELL, ROW_WORDS, SEAT_LOCKS, grant_word, state_of
from shmpool.protocol.messages import Query, Topic
from shmpool.protocol.names import direct_name
from shmpool.protocol.sizing import KIB, MIB, Sizing, make_tiers
from shmpool.protocol.states import CellState, State
from shmpool.system import processes
from shmpool.system.locks import ByteLocks
from shmpool.system.processes import namespaces, start_time
from shmpoold.core.actions import (
    Action,
    CloseTicket,
    CreateDirect,
    ProbeSeat,
    RemoveDirect,
    Warm,
    WatchAdopted,
    WatchConnected,
)
from shmpoold.core.broker import Broker
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    MemoryRead,
    Peer,
    ProcessDied,
    Received,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
    WarmFailed,
)
from shmpoold.core.memory.pressure import Pressure, Thresholds
from shmpoold.core.memory.spares import Spare
from shmpoold.core.outbox import Outbox
from shmpoold.shell.listener import Admission
from shmpoold.shell.pages import COOL_SLICE
from shmpoold.shell.segments import Access, SegmentStore
from shmpoold.shell.server import Server

TIERS = make_tiers(4 * MIB, Sizing(pooled_sizes=(64 * KIB,), chunk_sizes=(64 * KIB,)))


class ScriptedCore:
    """Answers an event by its type; *heard* is all that it was told."""

    #: Nothing takes several turns.
    chores = ()

    def __init__(self, adopt: list[Action]) -> None:
        self.seats = SimpleNamespace(count=8)
        self.reports = SimpleNamespace()
        self.script: dict[type[Any], list[Action] | Exception] = {}
        self.heard: list[Event] = []
        self.deadline: float | None = None
        self.inventory = SimpleNamespace(tiers=TIERS, held=0, limit=MIB * 1024)
        self.outbox = Outbox()
        self.pressure = Pressure(Thresholds())
        self.manager = SimpleNamespace(is_ready=True, failure="")
        self.draining = SimpleNamespace(is_done=False)
        self._adopt = adopt

    def adopt(self, now: float, segments: object) -> list[Action]:
        return self._adopt

    def finish_chores(self, now: float) -> list[Action]:
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        if not isinstance(event, MemoryRead):  # of this host, at any time
            self.heard.append(event)
        if isinstance(event, Ticked):
            self.deadline = None
        answer = self.script.pop(type(event), [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def next_deadline(self) -> float | None:
        return self.deadline

    def kinds(self) -> list[type]:
        return [type(event) for event in self.heard]


class Stage:
    def __init__(self, address: str, tickets: str, seats: str, adopt: list[Action]) -> None:
        self.address = address
        self.tickets = tickets
        self.locks = ByteLocks(tickets), ByteLocks(seats)
        self.core = ScriptedCore(adopt)
        self.store = SegmentStore.create(new_pool_id(), TIERS, 4, Access())
        self.server = Server(cast(Broker, self.core), self.store, *self.locks)

    async def until(self, kind: type) -> None:
        async with asyncio.timeout(10):
            while kind not in self.core.kinds():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def staged(directory: Path, adopt: list[Action]) -> AsyncIterator[Stage]:
    tickets, seats = directory / "tickets", directory / "seats"
    tickets.touch()
    seats.touch()
    stage = Stage(str(directory / "s"), str(tickets), str(seats), adopt)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(stage.address)
    listener.listen()
    listener.setblocking(False)
    stage.server.adopt()
    stage.server.serve(listener, Admission(os.geteuid()))
    try:
        yield stage
    finally:
        await stage.server.stop()
        for locks in stage.locks:
            locks.close()
        stage.store.remove_all()


def play(directory: Path, act: Callable[[Stage], Awaitable[None]], adopt: list[Action] | None = None) -> None:
    async def run() -> None:
        async with staged(directory, adopt or []) as stage:
            await act(stage)

    asyncio.run(run())


def test_error_in_the_core_ends_that_connection_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(stage: Stage) -> None:
        stage.core.script[Received] = RuntimeError("a bug")
        bad, good = Wire(stage.address), Wire(stage.address)
        bad.send(Query(1, Topic.STATS))
        await stage.until(Disconnected)
        good.send(Query(2, Topic.STATS))
        while stage.core.kinds().count(Received) < 2:
            await asyncio.sleep(0.001)
        assert stage.core.kinds() == [Connected, Connected, Received, Disconnected, Received]
        bad.close()
        good.close()

    play(tmp_path, act)
    assert "a bug" in caplog.text
    assert "Query(request=1" in caplog.text


def test_warming_is_answered_later_and_one_for_each_turn(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        base = TIERS[0].base
        stage.core.script[Ticked] = [Warm(0, base, 2), Warm(0, base + 2, 1), CreateDirect(TIERS[-1].base, 1, 4096)]
        stage.server.dispatch(Ticked())
        assert stage.core.kinds() == [Ticked, DirectCreated]
        await asyncio.sleep(0)  # one turn of the loop
        assert stage.core.heard[2:] == [Warmed(0, base, 2)]
        await asyncio.sleep(0)
        assert stage.core.heard[3:] == [Warmed(0, base + 2, 1)]

    play(tmp_path, act)


def test_a_large_direct_segment_is_removed_in_slices_and_what_comes_next_waits_for_its_room(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        row, slices = TIERS[-1].base, 3
        stage.store.create_direct(row, 1, slices * COOL_SLICE)
        with open(f"/dev/shm/{direct_name(stage.store.pool_id, row, 1)}", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, slices * COOL_SLICE)
        stage.core.script[Ticked] = [RemoveDirect(row, 1), CreateDirect(row, 2, 4096)]
        stage.server.dispatch(Ticked())
        turns = 0
        while stage.core.kinds() == [Ticked]:
            assert (row, 2) not in stage.store.direct_segments()
            await asyncio.sleep(0)
            turns += 1
        assert turns == slices + 1
        assert stage.core.kinds() == [Ticked, DirectCreated]
        assert stage.store.direct_segments() == [(row, 2)]

    play(tmp_path, act)


def test_a_segment_that_may_be_mapped_is_never_cut(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        row, nbytes = TIERS[-1].base, 2 * COOL_SLICE
        stage.store.create_direct(row, 1, nbytes)
        with open(f"/dev/shm/{direct_name(stage.store.pool_id, row, 1)}", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
            mapped = mmap.mmap(file.fileno(), nbytes)
        stage.core.script[Ticked] = [RemoveDirect(row, 1, may_be_mapped=True)]
        stage.server.dispatch(Ticked())
        await asyncio.sleep(0)
        assert stage.store.direct_segments() == []
        assert mapped[-1] == 0  # its page is there
        mapped.close()

    play(tmp_path, act)


def test_what_the_host_refuses_is_told_and_the_rest_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(stage: Stage) -> None:
        row = TIERS[-1].base
        stage.store.create_direct(row, 1, 4096)  # the name is taken
        monkeypatch.setattr("shmpool.system.memory.shm_free", lambda: 4096)
        stage.core.script[Ticked] = [
            CreateDirect(row, 1, 4096), Warm(0, TIERS[0].base, 1), CreateDirect(row, 2, 8192),
            CreateDirect(row, 3, 8192, Spare(row, 1, 4096, 0.0)),
        ]  # fmt: skip
        stage.server.dispatch(Ticked())
        await stage.until(WarmFailed)
        assert stage.core.kinds() == [Ticked, DirectFailed, DirectFailed, DirectCreated, WarmFailed]
        _, taken, full, _, failed = stage.core.heard
        assert isinstance(taken, DirectFailed) and isinstance(full, DirectFailed) and isinstance(failed, WarmFailed)
        assert "no room" not in taken.reason
        assert "no room for 8 KiB" in full.reason
        assert "no room for 64 KiB" in failed.reason

    play(tmp_path, act)


def test_timer_fires_at_the_core_s_deadline_and_survives_its_errors(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        stage.core.deadline = asyncio.get_running_loop().time() + 0.01
        stage.server.dispatch(TicketClosed(1))
        await stage.until(Ticked)
        stage.core.heard.clear()
        stage.core.script[Ticked] = RuntimeError("a bug")
        stage.core.deadline = 0.0
        stage.server.dispatch(TicketClosed(1))
        await stage.until(Ticked)
        assert stage.core.deadline is None

    play(tmp_path, act)


def test_ticket_is_closed_only_under_its_lock_and_only_if_still_open(tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        row, granted = 5, grant_word(9, State.PUBLISHED, 3)
        at = row * ROW_WORDS + FIRST_CELL
        stage.store.ledger[at] = stage.store.ledger[at + 1] = granted
        taken = stage.store.ledger[at + 2] = grant_word(9, CellState.TAKEN, 4)
        with ByteLocks(stage.tickets) as reader:
            assert reader.try_lock(row * 16)
            stage.core.script[Ticked] = [CloseTicket(row, cell, granted) for cell in range(3)]
            stage.server.dispatch(Ticked())
            assert stage.core.heard == [Ticked(), TicketClosed(row), TicketClosed(row)]
            assert stage.store.ledger[at] == granted
            assert state_of(stage.store.ledger[at + 1]) == CellState.DONE
            assert stage.store.ledger[at + 2] == taken
            stage.core.heard.clear()
            stage.store.ledger[at] = taken  # the reader goes on, while it still holds the lock
            await stage.until(TicketClosed)
            assert stage.store.ledger[at] == taken

    play(tmp_path, act)


def test_adopted_seats_end_when_their_byte_is_free_and_on_no_other_evidence(tmp_path: Path) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    gone = subprocess.Popen(["true"])
    gone.wait()
    began = start_time(child.pid)
    assert began is not None
    pids, times = namespaces()
    (tmp_path / "seats").touch()

    def adopted(seat: int, pid: int, began: int, *namespaces: int) -> WatchAdopted:
        return WatchAdopted(seat, Peer(pid, 0, 0, began, "", *namespaces))

    async def act(stage: Stage) -> None:
        assert stage.core.heard == [ProcessDied(2), *map(Unseen, (3, 4, 5, 6, 7))]
        stage.core.heard.clear()
        child.kill()
        await stage.until(ProcessDied)
        assert stage.core.heard == [ProcessDied(1)]
        stage.core.heard.clear()
        clients.unlock(SEAT_LOCKS + 3)
        stage.core.script[Ticked] = [ProbeSeat(seat) for seat in range(3, 8)]
        stage.server.dispatch(Ticked())
        assert stage.core.heard == [Ticked(), ProcessDied(3)]

    with ByteLocks(str(tmp_path / "seats")) as clients:
        for seat in (1, 3, 4, 5, 6, 7):
            assert clients.try_lock(SEAT_LOCKS + seat)
        play(
            tmp_path,
            act,
            [
                adopted(1, child.pid, began, pids, times),
                adopted(2, child.pid, began, pids, times),  # its process lives, and has let go of it
                adopted(3, child.pid, began + 1, pids, times),  # its pid is another's now
                adopted(4, gone.pid, 1, pids, times),
                adopted(5, 0, 0, pids, times),
                adopted(6, child.pid, began, pids + 1, times),
                adopted(7, child.pid, began, pids, times + 1),
            ],
        )
    child.communicate()


def test_client_that_cannot_be_watched_is_served_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in another pid namespace, where the kernel gives no pidfd of a peer (before 6.5)."""

    def no_pidfd(sock: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def act(stage: Stage) -> None:
        monkeypatch.setattr(processes, "pidfd_of_peer", no_pidfd)
        stage.core.script[Connected] = [WatchConnected(3, 1)]
        wire = Wire(stage.address)
        await stage.until(Unseen)
        assert stage.core.kinds() == [Connected, Unseen]
        assert stage.core.heard[-1] == Unseen(3)
        wire.close()

    play(tmp_path, act)


def test_accepting_pauses_while_there_are_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(sock: object) -> int:
        monkeypatch.undo()
        raise OSError(24, "Too many open files")

    async def act(stage: Stage) -> None:
        monkeypatch.setattr(processes, "pidfd_of_peer", no_descriptors)
        first = Wire(stage.address)
        await asyncio.sleep(0)
        second = Wire(stage.address)
        await stage.until(Connected)
        first.close()
        second.close()

    play(tmp_path, act)


def test_stop_removes_nothing_and_the_store_everything(tmp_path: Path) -> None:
    pools: list[int] = []

    async def act(stage: Stage) -> None:
        pools.append(stage.store.pool_id)
        await stage.server.stop()
        assert segments_of(stage.store.pool_id)

    play(tmp_path, act)
    assert segments_of(pools[0]) == set()
