"""What one turn of the loop does for one peer is bounded by count and by CPU time, whatever it sends.

The loop is counted, and its time and the time that messages cost are simulated: between two turns a callback
that was queued before them runs. How long a turn really is, shows `python -m benchmarks hostile`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, TypeVar

import pytest

from shmpool.protocol.codes import Code
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.ledger import MAX_ROWS
from shmpool.protocol.messages import (
    MAX_ROWS_PER_MESSAGE,
    Answer,
    Bell,
    Cancel,
    Fault,
    Message,
    Query,
    Refill,
    Topic,
    encode,
)
from shmpoold.core.events import Peer
from shmpoold.shell import connection as shell_connection
from shmpoold.shell.connection import CPU_PER_TURN, FRAMES_PER_TURN, MOST_QUESTIONS, Connection
from shmpoold.shell.listener import ACCEPTS_PER_WINDOW, Admission, Listener
from shmpoold.shell.turns import REST, SPACING, Turns

T = TypeVar("T")

LONG = Bell(list(range(1, MAX_ROWS_PER_MESSAGE + 1)))
LONGEST = Bell([MAX_ROWS - 1] * MAX_ROWS_PER_MESSAGE)


#: Seconds that a turn of the loop takes.
TURN = 0.00002


class Loop(asyncio.SelectorEventLoop):
    """Its time passes by its turns, and up to the next timer when nothing is to be done, on a busy machine as well."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__()
        select = self._selector.select  # type: ignore[attr-defined]

        def look(timeout: float | None) -> Any:
            ready = select(timeout and 0)
            self.now += TURN if ready or not timeout else timeout
            return ready

        self._selector.select = look  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(work)


class Clock:
    """The CPU time of this thread, as far as messages cost any."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shell_connection, "thread_time", clock)
    return clock


class Owner:
    """Hears messages; *counts* are how many came in each turn of the loop. *work* is done for each."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.work = work
        self.turns = Turns()
        self.counts = [0]
        self.messages: list[Message] = []
        self.gone = asyncio.Event()

    def on_connected(self, connection: Connection) -> None: ...

    def on_message(self, connection: Connection, message: Message) -> None:
        self.messages.append(message)
        self.counts[-1] += 1
        self.work()

    def on_lost(self, connection: Connection) -> None:
        self.gone.set()

    async def until(self, count: int) -> None:
        while len(self.messages) < count:
            await asyncio.sleep(0)  # a turn
            self.counts.append(0)


async def connected(owner: Owner) -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    peer = Peer(os.getpid(), os.getuid(), os.getgid(), 1, "")
    ours.setblocking(False)
    theirs.setblocking(False)
    _, connection = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(owner, 1, peer, -1), ours
    )
    return connection, theirs


def run(work: Callable[[Owner, Connection, socket.socket], Any], owner: Owner | None = None) -> Owner:
    owner = owner or Owner()

    async def both() -> Owner:
        connection, theirs = await connected(owner)
        with theirs:
            await asyncio.wait_for(work(owner, connection, theirs), 20)
            connection.abort()
            await owner.gone.wait()
        return owner

    return run_in_loop(both())


@pytest.mark.parametrize(("message", "most"), [(Cancel(1), FRAMES_PER_TURN), (LONG, 2)], ids=["short", "long"])
def test_a_turn_handles_so_many_frames_and_two_long_ones(message: Message, most: int) -> None:
    async def flood(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        sending = asyncio.get_running_loop().sock_sendall(theirs, encode_frame(encode(message)) * 200)
        await asyncio.gather(sending, owner.until(200))

    owner = run(flood)
    assert owner.messages == [message] * 200
    assert max(owner.counts) == most


@pytest.mark.parametrize("share", [0.3, 2.0], ids=["a third of a turn", "two turns"])
def test_a_turn_ends_when_what_it_was_asked_for_took_long(clock: Clock, share: float) -> None:
    """A Refill is five bytes and may be 256 slots: of 64 such in one turn others would wait 50 ms."""

    def grant() -> None:
        clock.now += share * CPU_PER_TURN

    async def flood(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        theirs.send(b"".join(encode_frame(encode(Refill(n, 0, 1, 256, True))) for n in range(1, 41)))
        await owner.until(40)

    owner = run(flood, Owner(grant))
    assert len(owner.messages) == 40
    assert max(owner.counts) * share <= 1 + share
    assert max(owner.counts) == (4 if share < 1 else 1)


def test_a_peer_that_used_its_turn_up_waits_for_the_next() -> None:
    async def flood(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        sending = asyncio.get_running_loop().sock_sendall(
            theirs, encode_frame(encode(Cancel(1))) * 10 * FRAMES_PER_TURN
        )
        await asyncio.gather(sending, owner.until(10 * FRAMES_PER_TURN))

    turns = run(flood).counts
    full = [at for at, count in enumerate(turns) if count == FRAMES_PER_TURN]
    assert len(full) >= 9
    assert sum(later > before + 1 for before, later in itertools.pairwise(full)) > len(full) // 2


def test_however_many_flood_the_turns_of_all_together_leave_most_of_the_time() -> None:
    turns, now, took = Turns(), 100.0, 0.001
    due = [(now, number) for number in range(20)]
    heapify(due)
    work: list[tuple[float, int]] = []
    while now < 101.0:
        now, number = heappop(due)
        work.append((now, number))
        heappush(due, (turns.reserve(now, took), number))
    later = [at for at, _ in work[20:]]
    assert all(after - before >= SPACING * took - 1e-9 for before, after in itertools.pairwise(later))
    assert {number for _, number in work[-20:]} == set(range(20))


def test_who_floods_alone_rests_as_long_as_ever() -> None:
    assert Turns().reserve(100.0, 0.001) == 100.0 + REST


@pytest.mark.parametrize("message", [Cancel(1), LONGEST], ids=["short", "long"])
def test_all_connections_of_a_process_have_one_turn_together(message: Message) -> None:
    """Hundreds of them, each with a little to do, would hold up everybody else as well as one with much."""

    async def flood(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        others = [await connected(owner) for _ in range(2 * FRAMES_PER_TURN)]
        for other, _ in others:
            other.data_received(encode_frame(encode(message)))
        most = FRAMES_PER_TURN if message == Cancel(1) else 1
        assert len(owner.messages) == most
        await owner.until(len(others))
        for other, end in others:
            other.abort()
            end.close()
        await asyncio.sleep(0)

    run(flood)


def test_connections_of_other_processes_have_turns_of_their_own() -> None:
    async def flood() -> None:
        turns = Turns()
        one, other = (turns.join(Peer(pid, 0, 0, 1, "")) for pid in (5, 6))
        unseen = [turns.join(Peer(0, 0, 0, 0, "")) for _ in range(2)]
        assert turns.join(Peer(5, 0, 0, 1, "")) is one and len({one, other, *unseen}) == 4
        again = Peer(5, 0, 0, 1, "")
        turns.leave(again, one)
        turns.leave(again, one)
        assert turns.join(again) is not one

    run_in_loop(flood())


@pytest.mark.parametrize("is_core", [False, True], ids=["no message", "the core's"])
def test_who_connects_anew_after_a_fault_has_no_turn_more_by_it(is_core: bool) -> None:
    """A peer whose connection was ended has cost more than its frames; a new one waits for what that took."""

    async def fault(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        loop, again = asyncio.get_running_loop(), Peer(5, 0, 0, 1, "")
        first = Connection(owner, 2, again, None)
        near, far = socket.socketpair()
        await loop.create_connection(lambda: first, sock=near)
        if is_core:
            owner.work = partial(_end, first)
        first.data_received(encode_frame(encode(Cancel(1)) if is_core else b"no message"))
        owner.work = lambda: None
        owner.messages.clear()
        far.close()
        while first._share.connections:
            await asyncio.sleep(0)
        left, (near, far) = loop.time(), socket.socketpair()
        second = Connection(owner, 3, again, None)
        assert second._share is first._share and not second._share.is_left
        await loop.create_connection(lambda: second, sock=near)
        second.data_received(encode_frame(encode(Cancel(1))))
        assert not owner.messages
        await owner.until(1)
        assert loop.time() >= left + REST
        far.close()
        while second._share.connections:
            await asyncio.sleep(0)
        assert owner.turns.join(again) is not second._share  # nothing is remembered of one that rests no longer

    run(fault)


def _end(connection: Connection) -> None:
    connection.send(Fault(Code.BAD_MESSAGE, "no such ticket"))
    connection.close()


def test_a_turn_is_used_up_by_what_comes_bit_by_bit() -> None:
    """A flood whose every read ends just before its turn does would never rest."""

    async def flood(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        bit = encode_frame(encode(Cancel(1))) * (FRAMES_PER_TURN // 2)
        connection.data_received(bit)
        connection.data_received(bit)
        theirs.send(bit)
        for _ in range(8):
            await asyncio.sleep(0)
        assert len(owner.messages) == FRAMES_PER_TURN
        await owner.until(3 * FRAMES_PER_TURN // 2)

    run(flood)


@pytest.mark.parametrize(("message", "rests"), [(Cancel(1), False), (LONGEST, True)], ids=["short", "long"])
def test_a_frame_that_came_alone_uses_a_turn_up_if_it_is_long(message: Message, rests: bool) -> None:
    async def act(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        connection.data_received(encode_frame(encode(message)))
        theirs.send(encode_frame(encode(Cancel(2))))
        for _ in range(5):
            await asyncio.sleep(0)
        assert (Cancel(2) in owner.messages) is not rests
        await owner.until(2)

    assert run(act).messages[-1] == Cancel(2)


def test_a_question_that_comes_alone_counts() -> None:
    async def ask(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        for number in range(1, MOST_QUESTIONS + 2):
            theirs.send(encode_frame(encode(Query(number, Topic.STATS))))
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(owner.messages) == MOST_QUESTIONS
        connection.send(Answer(1, True, b""))
        await owner.until(MOST_QUESTIONS + 1)

    run(ask)


def test_a_peer_that_dribbles_is_read_less_and_less_often() -> None:
    reads: list[bytes] = []

    async def dribble(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        listen = connection.data_received
        connection.data_received = lambda data: (reads.append(data), listen(data))[1]  # type: ignore[method-assign]
        theirs.send((1000).to_bytes(4, "little"))
        for _ in range(200):
            theirs.send(b"\x91")
            for _ in range(5):
                await asyncio.sleep(0)

    run(dribble)
    assert 1 <= len(reads) <= 30


def test_a_peer_with_many_questions_is_not_listened_to_until_one_is_answered() -> None:
    async def ask(owner: Owner, connection: Connection, theirs: socket.socket) -> None:
        theirs.send(encode_frame(encode(Query(1, Topic.STATS))) * 100)
        await owner.until(MOST_QUESTIONS)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(owner.messages) == MOST_QUESTIONS
        for answered in range(1, 101 - MOST_QUESTIONS):
            connection.send(Answer(1, True, b"{}"))
            await owner.until(MOST_QUESTIONS + answered)
            assert len(owner.messages) == MOST_QUESTIONS + answered

    assert len(run(ask).messages) == 100


def test_so_many_connections_are_admitted_before_others_have_their_turn(tmp_path: Path) -> None:
    async def accept() -> list[int]:
        admitted: list[socket.socket] = []
        turns: list[int] = []
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "s"))
            sock.listen(64)
            sock.setblocking(False)
            clients = [socket.socket(socket.AF_UNIX) for _ in range(30)]
            for one in clients:
                one.connect(str(tmp_path / "s"))

            def serve(accepted: socket.socket, peer: Peer, pidfd: int) -> None:
                admitted.append(accepted)
                os.close(pidfd)

            listener = Listener(sock, Admission(os.geteuid()), serve, lambda: None)
            listener.start()
            while len(admitted) < len(clients):
                before = len(admitted)
                await asyncio.sleep(0)
                turns.append(len(admitted) - before)
            listener.close()
            for one in [*clients, *admitted]:
                one.close()
        return turns

    assert max(run_in_loop(accept())) <= ACCEPTS_PER_WINDOW
