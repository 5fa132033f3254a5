"""Each way in which a worker can die, at each point, with real processes.

What it held is free soon, its publications stay readable, its tickets are closed, and nobody else
notices. The time from the death to the last free slot is printed (``pytest -rP``); the limit that
is asserted is only there for a machine that does other things.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import preloaded
import pytest
from corners import corner, sizes
from fault_helpers import (
    ENV,
    PATIENCE,
    Daemon,
    Worker,
    assert_all_is_back,
    eventually,
    held_by,
    out,
    pattern,
    publish,
    segments,
    worker,
)
from fault_worker import SIZES

import shmpool
from shmpool import Handle
from shmpool.protocol.ledger import SEAT_LOCKS
from shmpool.protocol.messages import Welcome
from shmpool.seat.mapping import Mapping
from shmpool.stats import query
from shmpool.system.locks import ByteLocks
from shmpoold.shell.watches import Watches

#: How files of this run in /dev/shm begin that are not shmpool's.
FOREIGN = f"{os.environ['SHMPOOL_PREFIX']}-not-ours-"

StartDaemon = Callable[..., Daemon]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "broker.sock")


def stop_and_remove(broker: Daemon) -> None:
    """Orderly; a pool that is kept is taken up once more, and removed."""
    if broker.process.poll() is None:
        broker.end(signal.SIGTERM)
        assert "Traceback" not in broker.logged()
        if broker.settings["on_stop"] == "keep":
            Daemon(broker.address, on_stop="remove").end(signal.SIGTERM)


@pytest.fixture
def start(address: str) -> Iterator[StartDaemon]:
    """Starts brokers that keep their pools; in the end everything has come back, and nothing stays."""
    started: list[Daemon] = []

    def make(at: str = address, **settings: object) -> Daemon:
        started.append(Daemon(at, **settings))  # type: ignore[arg-type]
        return started[-1]

    yield make
    try:
        for one in started:
            if one.process.poll() is None:
                assert_all_is_back(one.address)
    finally:
        for one in started:
            stop_and_remove(one)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests that leave it alive; each of them ends with `assert_all_is_back`."""
    one = Daemon(str(tmp_path_factory.mktemp("run") / "broker.sock"), on_stop="remove")
    yield one
    stop_and_remove(one)


@pytest.fixture
def pool(broker: Daemon) -> Iterator[shmpool.Pool]:
    with shmpool.connect(broker.address) as pool:
        yield pool
    assert_all_is_back(broker.address)


@pytest.fixture(scope="module")
def locking_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Of a pool whose tickets are taken under locks, whatever part of shmpool is there."""
    one = Daemon(str(tmp_path_factory.mktemp("locks") / "broker.sock"), on_stop="remove", tickets="locks")
    yield one
    stop_and_remove(one)


@pytest.fixture
def locked(locking_broker: Daemon) -> Iterator[shmpool.Pool]:
    with shmpool.connect(locking_broker.address) as pool:
        yield pool
    assert_all_is_back(locking_broker.address)


# --- a death -----------------------------------------------------------------------------------------


def death_by_kill(victim: Worker) -> float:
    now = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    return now


def death_while_stopped(victim: Worker) -> float:
    os.kill(victim.pid, signal.SIGSTOP)
    return death_by_kill(victim)


def death_by_own_hand(how: str) -> Callable[[Worker], float]:
    return lambda victim: float(victim.ask(f"die_{how}"))


def death_with_a_heir(how: str) -> Callable[[Worker], float]:
    def die(victim: Worker) -> float:
        victim.orphans.append(victim.ask(f"die_{how}"))
        return float(victim.hear())

    return die


DEATHS = {
    "kill": death_by_kill,
    "kill_stopped": death_while_stopped,
    "exit": death_by_own_hand("exit"),
    "hard_exit": death_by_own_hand("hard_exit"),
    "segfault": death_by_own_hand("segfault"),
    "exec": death_by_own_hand("exec"),
    "raw_fork": death_with_a_heir("raw_fork"),
    "fork": death_with_a_heir("fork"),
}


def nothing_is_held_by(address: str, victim: Worker, unread: int = 0) -> bool:
    """Its seat is cleared, which comes last, and of its buffers only *unread* ones are left."""
    return not held_by(address, victim.pid) and query(address).active_buffers == unread


def time_to_free(address: str, victim: Worker, died: float, unread: int = 0) -> float:
    eventually(lambda: nothing_is_held_by(address, victim, unread), "the last slot's return")
    seconds = time.monotonic() - died
    print(f"free {seconds * 1000:.1f} ms after the death")
    return seconds


@pytest.fixture(params=DEATHS)
def death(request: pytest.FixtureRequest) -> Callable[[Worker], float]:
    return DEATHS[request.param]


# --- at each point -----------------------------------------------------------------------------------


def test_leases_of_a_dead_worker_are_free_soon(pool: shmpool.Pool, death: Callable[[Worker], float]) -> None:
    with worker(pool.address) as victim:
        victim.ask("lease")
        assert query(pool.address).active_buffers == len(SIZES)
        time_to_free(pool.address, victim, death(victim))
        leases = [pool.lease(nbytes, timeout=0) for nbytes in SIZES]
        for lease in leases:
            lease.release()


def test_publications_of_a_dead_worker_stay_readable(pool: shmpool.Pool, death: Callable[[Worker], float]) -> None:
    with worker(pool.address) as victim:
        victim.ask("lease")
        handles = [Handle(bytes.fromhex(text)) for text in victim.ask("publish")]
        early = pool.open(handles[0])
        time_to_free(pool.address, victim, death(victim), unread=len(SIZES))
        assert early.view == pattern(SIZES[0], 0)
        early.release()
        for seed, (handle, nbytes) in enumerate(zip(handles, SIZES, strict=True)):
            if seed:
                with pool.open(handle) as buffer:
                    assert buffer.view == pattern(nbytes, seed)
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                pool.open(handle)
        eventually(lambda: query(pool.address).active_buffers == 0)


def test_tickets_of_a_dead_reader_are_closed(pool: shmpool.Pool, death: Callable[[Worker], float]) -> None:
    """What it had open comes back to the publisher, and the other readers read on."""
    handles = []
    for seed, nbytes in enumerate(SIZES):
        with pool.lease(nbytes) as lease:
            lease.write(pattern(nbytes, seed))
            handles.append(lease.publish_many(2))
    with worker(pool.address) as victim:
        seeds = list(range(len(SIZES)))
        assert victim.ask("open", handles=[first.hex() for first, _ in handles], seeds=seeds) == [True] * len(SIZES)
        for seed, (first, second) in enumerate(handles[:3]):
            with pool.open(second) as buffer:
                assert buffer.view == pattern(SIZES[seed], seed)
            with pytest.raises(shmpool.HandleUsed):
                pool.open(first)
        assert query(pool.address).active_buffers == len(SIZES), "the victim has them all open"
        died = death(victim)
        for heir in victim.orphans:  # it has inherited what its parent had open
            eventually(lambda: victim.process.poll() is not None)
            pool.lease(5000).release()
            assert query(pool.address).active_buffers == len(SIZES), "the heir has them all open"
            os.kill(heir, signal.SIGKILL)
        time_to_free(pool.address, victim, died, unread=len(SIZES) - 3)
        for seed, (first, second) in enumerate(handles[3:], 3):
            with pool.open(second) as buffer:
                assert buffer.view == pattern(SIZES[seed], seed)
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                pool.open(first)
        eventually(lambda: query(pool.address).active_buffers == 0)


def test_seat_of_a_dead_worker_is_another_s(pool: shmpool.Pool, death: Callable[[Worker], float]) -> None:
    """Even while a child of the dead one still has its socket, its maps and its locks."""
    with worker(pool.address) as victim:
        victim.ask("lease")
        time_to_free(pool.address, victim, death(victim))
        for _ in range(2):
            with shmpool.connect(pool.address) as other, other.open(publish(other, 5000)) as buffer:
                assert buffer.view == pattern(5000)


@pytest.mark.parametrize("how", corner("kill", "exec", "fork", "kill_stopped", "hard_exit", "segfault"))
def test_death_in_the_middle_of_opening_leaves_the_ticket_to_others(locked: shmpool.Pool, how: str) -> None:
    """It held the ticket's lock and had not stored yet: the kernel gives the lock back. (A child
    that inherited the lock's descriptor by a bare fork(2) keeps it as long as it lives.)"""
    handle = publish(locked, 300_000)
    with worker(locked.address) as victim:
        victim.ask("lock", handle=handle.hex())
        with pytest.raises(shmpool.HandleUsed, match="elsewhere"):
            locked.open(handle)
        time_to_free(locked.address, victim, DEATHS[how](victim), unread=1)
        with locked.open(handle) as buffer:
            assert buffer.view == pattern(300_000)


# --- nobody else notices -------------------------------------------------------------------------------


def test_memory_of_a_dead_worker_serves_who_waits_for_it(start: StartDaemon, address: str) -> None:
    """A lease that is blocked because a worker holds everything is served by that worker's death."""
    start(memory_limit="8MiB")
    with worker(address) as victim:
        victim.ask("lease")
        with shmpool.connect(address) as pool:
            with pytest.raises(shmpool.LeaseTimeout):
                pool.lease(5_000_000, timeout=0)
            with pytest.raises(shmpool.LeaseTimeout):
                pool.lease(5_000_000, timeout=0.05)
            with shmpool.connect(address) as other:
                reading, writing = os.pipe()
                waiter = _fork(lambda: _lease_and_tell(address, 5_000_000, writing))
                os.close(writing)
                eventually(lambda: any("wait for memory" in alert for alert in query(address).alerts))
                died = death_by_kill(victim)
                with open(reading, "rb") as pipe:
                    assert select.select([pipe], [], [], PATIENCE)[0]
                    assert pipe.read() == b"leased"
                print(f"leased by a waiter {(time.monotonic() - died) * 1000:.1f} ms after the death")
                assert os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]) == 0
                other.lease(1000).release()


def _lease_and_tell(address: str, nbytes: int, writing: int) -> None:
    with shmpool.connect(address) as pool:
        pool.lease(nbytes, timeout=PATIENCE).release()
    os.write(writing, b"leased")


def _fork(target: Callable[[], object]) -> int:
    """A child that runs *target* and ends; 0 is its status if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        target()
        status = 0
    finally:
        os._exit(status)


def test_stopped_worker_keeps_what_it_holds_and_goes_on(start: StartDaemon, address: str) -> None:
    """Through a restart of the broker, and though others need memory."""
    broker = start()
    with shmpool.connect(address) as pool, worker(address) as sleeper:
        theirs = [publish(pool, nbytes, seed) for seed, nbytes in enumerate(SIZES)]
        seeds = list(range(len(SIZES)))
        sleeper.ask("lease", fill=1.0)
        sleeper.ask("open", handles=[handle.hex() for handle in theirs], seeds=seeds)
        unread = [Handle(bytes.fromhex(text)) for text in sleeper.ask("publish")]
        active = query(address).active_buffers
        assert active == 3 * len(SIZES)
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            _churn(pool)
            assert query(address).active_buffers == active
            broker.end(signal.SIGKILL)
            start()
            eventually(lambda: held_by(address, os.getpid())[0].connected, "our own return")
            _churn(pool)
            stats = query(address)
            assert stats.active_buffers == active
            (seat,) = held_by(address, sleeper.pid)
            assert not seat.connected
            assert seat.bytes > sum(SIZES)
            with pool.open(unread[0]) as buffer:
                assert buffer.view == pattern(SIZES[0], 0)
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.ask("check") == [True] * len(SIZES)
        for seed, text in enumerate(sleeper.ask("publish_leases")):
            with pool.open(Handle(bytes.fromhex(text))) as buffer:
                assert buffer.view == pattern(SIZES[seed], seed)
        for seed, handle in enumerate(unread[1:], 1):
            with pool.open(handle) as buffer:
                assert buffer.view == pattern(SIZES[seed], seed)
        eventually(lambda: held_by(address, sleeper.pid)[0].connected, "the sleeper's return")
        sleeper.ask("release")
        eventually(lambda: query(address).active_buffers == 0)
        assert not query(address).alerts


def _churn(pool: shmpool.Pool) -> None:
    """Use the pool so much that anything given twice would be overwritten."""
    for _ in range(3):
        leases = [pool.lease(nbytes, timeout=PATIENCE) for nbytes in (*SIZES, 60_000, 500_000)]
        for lease in leases:
            lease.view[:] = b"!" * lease.nbytes
        for lease in leases:
            lease.release()


@pytest.mark.parametrize("lives", sizes(12, 60, 300))
def test_worker_restarted_instantly_again_and_again(start: StartDaemon, address: str, lives: int) -> None:
    """Each one connects, leases, publishes and is dead; the next one is there already. The broker
    has four seats."""
    start(max_clients=4)
    started = time.monotonic()
    with shmpool.connect(address) as pool:
        for number in range(lives):
            reading, writing = os.pipe()
            pid = _fork(lambda writing=writing, number=number: _brief_life(address, writing, number))  # type: ignore[misc]
            os.close(writing)
            with open(reading, "rb") as pipe:
                raw = pipe.read()
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            with pool.open(Handle(raw)) as buffer:
                assert buffer.view == pattern(1000 + number, number)
        eventually(lambda: len(query(address).clients) == 1)
        eventually(lambda: query(address).active_buffers == 0)
        print(f"{lives} lives in {time.monotonic() - started:.2f} s")


def _brief_life(address: str, writing: int, number: int) -> None:
    pool = eventually(lambda: _connected(address))
    held = [pool.lease(nbytes) for nbytes in (500, 300_000)]
    os.write(writing, publish(pool, 1000 + number, number))
    os.kill(os.getpid(), signal.SIGKILL)
    del held


def _connected(address: str) -> shmpool.Pool | None:
    """None while the last ones' seats are not free yet."""
    try:
        return shmpool.connect(address)
    except shmpool.BrokerUnavailable as error:
        if "NO_SEAT" not in str(error):
            raise
        return None


# --- all at once -----------------------------------------------------------------------------------------


@pytest.fixture
def foreign_segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/{FOREIGN}{secrets.token_hex(4)}")
    path.write_bytes(b"somebody else's")
    yield path
    assert path.read_bytes() == b"somebody else's"
    path.unlink()


def kill_all(broker: Daemon, workers: list[Worker]) -> None:
    for pid in (broker.pid, *(one.pid for one in workers)):
        os.kill(pid, signal.SIGKILL)
    broker.process.wait(PATIENCE)
    for one in workers:
        one.process.wait(PATIENCE)


def test_broker_after_a_machine_wide_kill_takes_up_its_pool_and_frees_what_was_the_dead_ones(
    start: StartDaemon, address: str, tmp_path: Path, foreign_segment: Path
) -> None:
    neighbour = start(str(tmp_path / "other" / "broker.sock"))
    with shmpool.connect(neighbour.address) as theirs, worker(neighbour.address) as their_worker:
        their_worker.ask("lease", fill=1.0)
        handle = publish(theirs, 5000)
        broker = start()
        pool_id = broker.pool
        with worker(address) as first, worker(address) as second:
            first.ask("lease")
            handles = first.ask("publish", many=2)
            second.ask("open", handles=handles[::2], seeds=list(range(len(SIZES))))
            unread = [Handle(bytes.fromhex(text)) for text in second.ask("publish")]
            kill_all(broker, [first, second])
        others = _names() - segments(pool_id)
        again = start()
        assert again.pool == pool_id
        stats = query(address)
        assert (stats.epoch, stats.clients) == (2, [])
        assert stats.active_buffers == 2 * len(SIZES), "unread publications, and nothing else"
        with shmpool.connect(address) as pool:
            for seed, raw in enumerate(handles[1::2]):
                with pool.open(Handle(bytes.fromhex(raw))) as buffer:
                    assert buffer.view == pattern(SIZES[seed], seed)
            for seed, unread_handle in enumerate(unread):
                with pool.open(unread_handle) as buffer:
                    assert buffer.view == pattern(SIZES[seed], seed)
        eventually(lambda: out(address) == 0)
        assert _names() - segments(pool_id) >= others
        with theirs.open(handle) as buffer:
            assert buffer.view == pattern(5000)
        for seed, text in enumerate(their_worker.ask("publish_leases")):
            with theirs.open(Handle(bytes.fromhex(text))) as buffer:
                assert buffer.view == pattern(SIZES[seed], seed)


def test_cleanup_after_a_machine_wide_kill_removes_what_nobody_living_owns_and_only_that(
    start: StartDaemon, address: str, tmp_path: Path, foreign_segment: Path
) -> None:
    neighbour = start(str(tmp_path / "other" / "broker.sock"))
    with shmpool.connect(neighbour.address) as theirs:
        handle = publish(theirs, 5000)
        broker = start()
        pool_id = broker.pool
        with worker(address) as victim:
            victim.ask("lease")
            victim.ask("publish")
            assert "kept" in _clean_up(address, pool_id), "its broker lives"
            broker.end(signal.SIGKILL)
            assert "kept" in _clean_up(address, pool_id), "its client lives"
            assert segments(pool_id)
            victim.close()
        kept, held = _names() - segments(pool_id), segments(pool_id)
        assert f"removed {len(held)} segments" in _clean_up(address, pool_id)
        assert segments(pool_id) == set()
        assert "kept" in _clean_up(address, neighbour.pool)
        assert _names() >= kept
        with theirs.open(handle) as buffer:
            assert buffer.view == pattern(5000)
        assert start().pool != pool_id, "a new pool"


def _names() -> set[str]:
    """What this run has in /dev/shm that is not shmpool's."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(FOREIGN)}


def _clean_up(address: str, pool_id: str) -> str:
    """What ``shmpoold --cleanup`` says about one pool."""
    line = [sys.executable, "-W", "error", "-m", "shmpoold", "--cleanup", "--socket", address]
    done = preloaded.run(line, env=ENV, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if pool_id in line)
    return line


def test_seat_s_inherited_lock_does_not_cost_its_next_owner_anything(start: StartDaemon, address: str) -> None:
    """A child by fork(2) has the dead worker's seat lock, the next client has the number. When the
    child is gone, too, the byte is free: a restarted broker must not take that for an exec."""
    broker = start()
    with worker(address) as victim:
        seat = held_by(address, victim.pid)[0].seat
        died = DEATHS["raw_fork"](victim)
        time_to_free(address, victim, died)
        with worker(address) as next_one, worker(address) as last_one:
            seats = [[client.seat for client in held_by(address, one.pid)] for one in (next_one, last_one)]
            print(f"the dead one had seat {seat}, the next ones tried {seats}")
            for one in (next_one, last_one):
                one.ask("lease", fill=1.0)
            os.kill(victim.orphans[0], signal.SIGKILL)
            for one in (next_one, last_one):
                os.kill(one.pid, signal.SIGSTOP)  # so that they cannot reconnect before they are probed
            broker.end(signal.SIGKILL)
            start()
            with shmpool.connect(address) as pool:
                for _ in range(20):
                    _churn(pool)
                assert query(address).active_buffers == 2 * len(SIZES)
                for one in (next_one, last_one):
                    os.kill(one.pid, signal.SIGCONT)
                for one in (next_one, last_one):
                    for number, text in enumerate(one.ask("publish_leases")):
                        with pool.open(Handle(bytes.fromhex(text))) as buffer:
                            assert buffer.view == pattern(SIZES[number], number)


def test_client_whose_broker_dies_before_it_has_sat_down_gets_another_seat(
    start: StartDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its welcome, and is slow; the next broker finds its seat's byte free, and clears the
    seat. (Stopped workers in the soak found this.)"""
    broker = start()
    welcomed, go_on = threading.Event(), threading.Event()
    map_words = Mapping._make_words

    def slowly(self: Mapping, welcome: Welcome) -> None:
        welcomed.set()
        assert go_on.wait(PATIENCE)
        map_words(self, welcome)

    monkeypatch.setattr(Mapping, "_make_words", slowly)
    pools: list[shmpool.Pool] = []
    thread = threading.Thread(target=lambda: pools.append(shmpool.connect(address, timeout=PATIENCE)))
    thread.start()
    assert welcomed.wait(PATIENCE)
    broker.end(signal.SIGKILL)
    start()
    eventually(lambda: not query(address).clients, "the seat's clearing")
    go_on.set()
    thread.join(PATIENCE)
    (pool,) = pools
    with pool, pool.open(publish(pool, 5000)) as buffer:
        assert buffer.view == pattern(5000)


def test_seat_that_is_probed_and_found_free_stays_locked_until_it_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "tickets.lock"
    path.touch()

    async def probe() -> None:
        with ByteLocks(str(path)) as own, ByteLocks(str(path)) as client:
            died: list[int] = []
            watches = Watches(own, died.append, died.append, lambda seat: True)
            assert client.try_lock(SEAT_LOCKS + 4)
            watches.probe(3)
            watches.probe(4)
            assert died == [3]
            assert not client.try_lock(SEAT_LOCKS + 3)
            watches.unwatch(3)
            assert client.try_lock(SEAT_LOCKS + 3)

    asyncio.run(probe())


@pytest.mark.parametrize(
    "nbytes", [pytest.param(1000, marks=pytest.mark.long), 300_000, pytest.param(2_000_000, marks=pytest.mark.long)]
)
def test_closed_pool_with_a_view_left_lets_go_of_it_though_its_broker_has_died(
    start: StartDaemon, address: str, nbytes: int
) -> None:
    """It connects no more, so nobody is told; but its seat's lock goes with the last view, and the
    next broker finds it free. Until then the slot is its own."""
    broker = start()
    with shmpool.connect(address) as other, shmpool.connect(address) as pool:
        buffer = pool.open(publish(other, nbytes))
        view = buffer.view[:]
        pool.close()
        broker.end(signal.SIGKILL)
        start()
        eventually(lambda: any(client.connected for client in query(address).clients), "the other's return")
        _churn(other)
        assert view == pattern(nbytes)
        assert len(query(address).clients) == 2
        assert query(address).active_buffers == 1
        view.release()
        buffer.release()
        eventually(lambda: len(query(address).clients) == 1, "the seat's end")
        eventually(lambda: query(address).active_buffers == 0)
