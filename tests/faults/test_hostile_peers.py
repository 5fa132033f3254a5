"""Peers that break every rule, against a real broker: each one gets a clear fault or is closed, the
broker's memory and descriptors stay bounded, and a well-behaved client goes on all the while."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from corners import corner
from fault_helpers import (
    MIB,
    PATIENCE,
    Bystander,
    Daemon,
    assert_all_is_back,
    eventually,
    held_by,
    pattern,
    publish,
    segments,
)
from hostile import BAD_FRAMES, BAD_MESSAGES, HELLO, OUT_OF_ORDER, Peer, noise, packed

import shmpool
from shmpool.protocol.codes import Code
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.messages import (
    MAX_ROWS_PER_MESSAGE,
    PROTOCOL_VERSION,
    Answer,
    Bell,
    Cancel,
    Direct,
    Goodbye,
    Grant,
    Message,
    Query,
    Refill,
    Refusal,
    Return,
    Role,
    Topic,
    encode,
)
from shmpool.stats import query

SEATS = 16
#: What peers may cost the broker for a while. Each is not listened to beyond 64 KiB of unread output.
MOST_GROWTH = 16 * MIB

Connect = Callable[..., Peer]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One broker for all of it: it must survive them all. It is less patient than others are."""
    one = Daemon(
        str(tmp_path_factory.mktemp("run") / "broker.sock"), max_clients=SEATS, on_stop="remove",
        constants={"STALL_DEADLINE": 1.0, "HELLO_DEADLINE": 3.0},
    )  # fmt: skip
    yield one
    one.end(signal.SIGTERM)
    assert one.process.returncode == 0
    assert "Traceback" not in one.logged()


@pytest.fixture
def connect(broker: Daemon) -> Iterator[Connect]:
    """Raw peers; in the end they are closed, all memory is back, and no descriptor is left."""
    before = set(broker.descriptors())
    peers: list[Peer] = []

    def make(*, greets: bool = True) -> Peer:
        peers.append(Peer(broker.address))
        if greets:  # the seats of peers that were ended are free soon, not at once
            eventually(lambda: len(query(broker.address).clients) < SEATS, "a free seat")
            peers[-1].hello()
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()
    assert_all_is_back(broker.address)
    # Segments of tiers are opened when they are first used, and stay open.
    eventually(lambda: not _leaked(broker, before), "the broker's descriptors' return")


def _leaked(broker: Daemon, before: set[str]) -> dict[str, str]:
    return {
        fd: target for fd, target in broker.descriptors().items() if fd not in before and "shmpool-" not in target
    }  # fmt: skip


@pytest.fixture
def bystander(broker: Daemon, connect: Connect) -> Iterator[Bystander]:
    with Bystander(broker.address) as bystander:
        yield bystander
        bystander.goes_on()


# --- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greets", [False, True], ids=["first", "after_hello"])
@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_what_is_no_frame_ends_the_connection(
    connect: Connect, bystander: Bystander, data: bytes, greets: bool
) -> None:
    peer = connect(greets=greets)
    peer.push(data)
    fault = peer.ending()
    assert fault is None or fault.code == Code.BAD_FRAME
    if len(data) < 1000:
        assert fault, "there was nothing that kept the broker from saying why"


def test_what_is_no_message_ends_the_connection_and_says_why(connect: Connect, bystander: Bystander) -> None:
    for greets in (False, True):
        for name, data in BAD_MESSAGES.items():
            peer = connect(greets=greets)
            peer.push(data)
            fault = peer.ending()
            assert fault, name
            assert fault.code == Code.BAD_MESSAGE, (name, fault)
            assert fault.text, name
            peer.close()


@pytest.mark.parametrize("data", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_what_is_out_of_order_ends_the_connection_and_says_why(
    connect: Connect, bystander: Bystander, data: bytes
) -> None:
    peer = connect()
    peer.push(data)
    fault = peer.ending()
    assert fault and fault.code == Code.BAD_MESSAGE


def test_nothing_may_come_before_hello(connect: Connect, bystander: Bystander) -> None:
    for message in (Refill(1, 0, 1, 1, True), Direct(1, 1, True), Return([1]), Bell([1]), Query(1, 0), Goodbye()):
        peer = connect(greets=False)
        peer.say(message)
        fault = peer.ending()
        assert fault and fault.code == Code.BAD_MESSAGE and "Hello" in fault.text


def test_operator_may_only_ask(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    for message in (Refill(1, 0, 1, 1, True), Direct(1, 1, True), Return([1]), Bell([1]), Goodbye()):
        peer = connect(greets=False)
        peer.hello(Role.OPERATOR)
        peer.say(message)
        fault = peer.ending()
        assert fault and fault.code == Code.BAD_MESSAGE and "operator" in fault.text


@pytest.mark.parametrize("seed", corner(0, 1, 2, 3))
def test_noise_never_breaks_the_broker(connect: Connect, bystander: Bystander, seed: int) -> None:
    """Mutations of sound messages, from peers who do not care about the answers."""
    for number, data in zip(range(50), noise(seed), strict=False):
        peer = connect(greets=False)
        peer.push((packed(*HELLO) if number % 2 else b"") + data)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.ending()
        peer.close()


# --- messages -----------------------------------------------------------------------------------------------


def test_duplicate_request_ends_the_connection_and_its_slots_are_not_lost(
    connect: Connect, bystander: Bystander, broker: Daemon
) -> None:
    """A request that waits, sent again; what had been granted to the peer before stays its own
    until it ends."""
    peer = connect()
    granted = take_all(peer)
    peer.say(Direct(7, 28 * MIB, True), Direct(7, 28 * MIB, True))
    fault = peer.ending()
    assert granted
    assert fault and fault.code == Code.BAD_MESSAGE and "7" in fault.text
    peer.close()


def take_all(peer: Peer, most: int = 4) -> list[int]:
    """Some direct segments; rows."""
    rows: list[int] = []
    for number in range(1, most + 1):
        peer.say(Direct(number, MIB, False))
        answer = peer.hear()
        if isinstance(answer, Grant):
            rows += answer.rows
    return rows


def test_replayed_answered_requests_are_new_requests(connect: Connect, bystander: Bystander) -> None:
    peer = connect()
    for _ in range(3):
        peer.say(Refill(1, 0, 1, 2, False))
        answer = peer.hear()
        assert isinstance(answer, Grant) and answer.request == 1
    peer.say(Cancel(1), Cancel(99), Query(2, Topic.LEASES))
    assert isinstance(peer.hear(), Answer), "cancelling what is not under way is no error"


def test_request_beyond_all_bounds_is_refused_and_the_connection_goes_on(
    connect: Connect, bystander: Bystander
) -> None:
    peer = connect()
    for message in (Direct(1, (1 << 40) - 1, True), Refill(1, 6, 65535, 1024, True)):
        peer.say(message)
        refusal = peer.hear()
        assert isinstance(refusal, Refusal) and refusal.code == Code.TOO_LARGE and "memory_limit" in refusal.text
    peer.say(Refill(2, 0, 1, 1, False))
    assert isinstance(peer.hear(), Grant)


def test_returns_and_bells_for_others_rows_change_nothing(broker: Daemon, connect: Connect) -> None:
    """Every row of the pool, again and again, while others lease, publish and read."""
    with Bystander(broker.address) as bystander, shmpool.connect(broker.address) as pool:
        leases = [pool.lease(nbytes) for nbytes in (1000, 300_000, 2 * MIB)]
        for lease in leases:
            lease.view[:] = pattern(lease.nbytes)
        handles = [publish(pool, nbytes, 3) for nbytes in (1000, 300_000, 2 * MIB)]
        buffer = pool.open(publish(pool, 4000, 4))
        peer = connect()
        rows = sum(tier.capacity for tier in query(broker.address).tiers) + MAX_ROWS_PER_MESSAGE
        for _ in range(3):
            for at in range(1, rows, MAX_ROWS_PER_MESSAGE):
                batch = list(range(at, at + MAX_ROWS_PER_MESSAGE))
                peer.say(Return(batch), Bell(batch))
        peer.say(Query(1, Topic.LEASES))
        while not isinstance(peer.hear(), Answer):
            pass
        bystander.goes_on()
        assert all(lease.view == pattern(lease.nbytes) for lease in leases)
        assert buffer.view == pattern(4000, 4)
        for handle in handles:
            with pool.open(handle) as other:
                assert other.view == pattern(handle.nbytes, 3)
        for lease in leases:
            lease.release()
        buffer.release()


def test_return_of_what_was_never_given_back_is_not_believed(broker: Daemon, connect: Connect) -> None:
    """The peer's own rows still say IDLE: a Return alone frees nothing."""
    peer = connect()
    peer.say(Refill(1, 0, 1, 4, False))
    grant = peer.hear()
    assert isinstance(grant, Grant)
    peer.say(Return(grant.rows), Bell(grant.rows), Query(2, Topic.LEASES))
    assert isinstance(peer.hear(), Answer)
    held = [client for client in held_by(broker.address, os.getpid()) if client.bytes]
    assert len(held) == 1
    peer.say(Refill(3, 0, 1, 4, False))
    again = peer.hear()
    assert isinstance(again, Grant)
    assert not set(again.rows) & set(grant.rows)


def test_goodbye_with_slots_in_hand_frees_them(connect: Connect, bystander: Bystander) -> None:
    peer = connect()
    assert take_all(peer)
    peer.say(Goodbye())
    assert peer.ending() is None


# --- slow and many ---------------------------------------------------------------------------------------------


def push_until_ended(peer: Peer, data: bytes, broker: Daemon) -> int:
    """Send and never read, until the broker ends it; the most by which the broker grew."""
    before = highest = broker.resident()
    assert before > 4 * MIB, "that is no interpreter"
    peer.socket.settimeout(0.05)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            peer.socket.send(data)
        except TimeoutError:
            pass  # it is not listened to just now
        except (BrokenPipeError, ConnectionResetError):
            print(f"the broker grew by {(highest - before) / MIB:.1f} MiB")
            return highest - before
        highest = max(highest, broker.resident())
    raise AssertionError(f"it was not ended within {PATIENCE} s")


def test_peer_that_never_reads_is_ended_and_costs_bounded_memory(
    broker: Daemon, connect: Connect, bystander: Bystander
) -> None:
    questions = encode_frame(encode(Query(1, Topic.STATS))) * 200
    assert push_until_ended(connect(), questions, broker) < MOST_GROWTH
    eventually(lambda: "SLOW_READER" in broker.logged())


def test_peer_that_lets_its_refusals_pile_up_is_ended(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    requests = encode_frame(encode(Direct(1, 1 << 39, False))) * 500
    assert push_until_ended(connect(), requests, broker) < MOST_GROWTH


def test_half_a_frame_has_a_deadline_however_slowly_it_trickles_in(connect: Connect, bystander: Bystander) -> None:
    """A byte now and then does not buy time; the broker's deadline here is one second."""
    peer = connect()
    started = time.monotonic()
    answers = select.poll()
    answers.register(peer.socket, select.POLLIN)
    for byte in encode_frame(encode(Query(1, Topic.LEASES)) + b"\0" * 1000):
        peer.push(bytes([byte]))
        if answers.poll(50):
            break
    fault = peer.ending()
    assert fault and fault.code == Code.BAD_FRAME and "half a frame" in fault.text
    assert 0.9 < time.monotonic() - started < PATIENCE


def test_silence_before_hello_has_a_deadline(connect: Connect, bystander: Bystander) -> None:
    silent, slow = connect(greets=False), connect(greets=False)
    slow.socket.send(encode_frame(encode(Query(1, 0)))[:3])
    for peer in (silent, slow):
        fault = peer.ending()
        assert fault and fault.code == Code.BAD_FRAME and "no hello" in fault.text


def test_thousand_connections_at_once(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    """Those beyond the bound are told so; whoever is in goes on, and when they have gone there is
    room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this host allows too few descriptors")
    before = broker.resident()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    peers: list[Peer] = []
    refused = served = 0
    try:
        for _ in range(1000):
            peers.append(Peer(broker.address))
        for peer in peers:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.push(packed(*HELLO))
        for peer in peers:
            try:
                message: Message = peer.hear()
            except EOFError:
                refused += 1
            else:
                refused += getattr(message, "code", None) in (Code.NO_SEAT, Code.BAD_FRAME)
                served += type(message).__name__ == "Welcome"
        assert refused + served == 1000
        assert 0 < served < SEATS
        bystander.goes_on()
        assert broker.resident() - before < MOST_GROWTH
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: len(held_by(broker.address, os.getpid())) == 1, "the seats' return")
    connect()


def test_client_waits_for_its_turn_when_the_backlog_is_full(broker: Daemon, connect: Connect) -> None:
    flood: list[socket.socket] = []
    connected: list[shmpool.Pool] = []
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        while not flood or flood[-1].connect_ex(broker.address) == 0:
            flood.append(socket.socket(socket.AF_UNIX))
            flood[-1].setblocking(False)
        with pytest.raises(shmpool.BrokerUnavailable):
            shmpool.connect(broker.address, timeout=0.05)
        thread = threading.Thread(target=lambda: connected.append(shmpool.connect(broker.address, timeout=PATIENCE)))
        thread.start()
    finally:
        for one in flood:
            one.close()
        os.kill(broker.pid, signal.SIGCONT)
    thread.join(PATIENCE)
    (pool,) = connected
    with pool, pool.open(publish(pool, 5000)) as buffer:
        assert buffer.view == pattern(5000)


def test_peers_that_come_and_go_leave_nothing(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    """At every stage: before hello, after half of it, after it, with grants under way."""
    whole = packed(*HELLO)
    lives = [b"", whole[:5], whole, whole + packed(2, 1, 0, 1, 8, True), whole + packed(3, 1, 5000, True)]
    for number in range(300):
        peer = Peer(broker.address)
        peer.push(lives[number % len(lives)])
        peer.close()
    eventually(lambda: len(held_by(broker.address, os.getpid())) == 1, "the seats' return")


# --- descriptors --------------------------------------------------------------------------------------------------


def test_descriptors_that_nobody_asked_for_are_not_kept(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    peer = connect()
    before = len(broker.descriptors())
    reading, writing = os.pipe()
    try:
        frame = packed(7, 1, 1)
        for _ in range(50):
            peer.socket.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading] * 100))])
        answers = [peer.hear() for _ in range(50)]
        assert all(isinstance(answer, Answer) for answer in answers)
        assert os.readlink(f"/proc/self/fd/{reading}") not in broker.descriptors().values()
        assert len(broker.descriptors()) <= before + 4
    finally:
        os.close(reading)
        os.close(writing)


def test_broker_without_descriptors_serves_on_and_recovers(tmp_path: Path) -> None:
    """Its limit leaves room for a few connections: who is in goes on, the others wait, and are served
    when there is room again."""
    broker = Daemon(str(tmp_path / "run" / "broker.sock"), descriptors=64, max_clients=64, on_stop="remove")
    peers: list[Peer] = []
    try:
        with Bystander(broker.address) as bystander:
            for _ in range(100):
                peers.append(Peer(broker.address))
                peers[-1].push(packed(*HELLO))
            eventually(lambda: "not accepting" in broker.logged(), "the shortage")
            bystander.goes_on()
            waiting = peers.pop()
            assert not waiting.inbox
            while peers:
                peers.pop().close()
            waiting.hear()  # it is served at last
            waiting.close()
            bystander.goes_on()
            with shmpool.connect(broker.address) as pool, pool.open(publish(pool, 5000)) as buffer:
                assert buffer.view == pattern(5000)
        assert_all_is_back(broker.address)
    finally:
        for peer in peers:
            peer.close()
        broker.end(signal.SIGTERM)
    assert "Traceback" not in broker.logged()


# --- strangers ------------------------------------------------------------------------------------------------------


def as_nobody(work: Callable[[], str]) -> str:
    """What *work* says in a forked child that has become the user nobody."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = "it did not end"
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode()[:4000])
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_stranger_reaches_neither_the_socket_nor_the_memory(
    broker: Daemon, connect: Connect, bystander: Bystander
) -> None:
    names = sorted(segments(broker.pool))
    assert names
    directory = Path(broker.address).parent
    files = [f"/dev/shm/{name}" for name in names]
    files += [str(path) for path in directory.iterdir() if path.suffix != ".log"]
    modes = {path: os.stat(path).st_mode & 0o077 for path in files if os.path.exists(path)}
    assert not any(modes.values()), modes

    def try_all() -> str:
        got = []
        for path in files:
            # A direct segment may be gone by now: the bystander is at work.
            for flags in (os.O_RDONLY, os.O_RDWR):
                with contextlib.suppress(PermissionError, FileNotFoundError):
                    os.close(os.open(path, flags))
                    got.append(path)
            with contextlib.suppress(PermissionError, FileNotFoundError):
                os.unlink(path)
                got.append(f"unlinked {path}")
        with contextlib.suppress(PermissionError):
            Peer(broker.address)
            got.append("connected")
        return str(got)

    assert as_nobody(try_all) == "[]"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_stranger_who_gets_through_to_the_socket_is_refused(
    broker: Daemon, connect: Connect, bystander: Bystander
) -> None:
    """A second wall behind the file modes: the kernel's word on the peer."""
    opened_up = {Path(broker.address): 0o666, Path(broker.address).parent: 0o711}
    modes = {path: path.stat().st_mode & 0o777 for path in opened_up}
    directory = os.open(Path(broker.address).parent, os.O_PATH)

    def try_hello() -> str:
        peer = Peer(f"/proc/self/fd/{directory}/{Path(broker.address).name}")
        peer.push(packed(*HELLO))
        fault = peer.ending()
        return f"{Code(fault.code).name}: {fault.text}" if fault else "closed without a word"

    try:
        for path, mode in opened_up.items():
            path.chmod(mode)
        said = as_nobody(try_hello)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
        os.close(directory)
    assert said.startswith("FORBIDDEN") and "65534" in said
    assert query(broker.address).clients


def test_stale_claim_to_a_seat_is_given_a_new_one(broker: Daemon, connect: Connect, bystander: Bystander) -> None:
    """Whoever names another's seat, without its nonce, does not get it."""
    mine = shmpool.connect(broker.address)
    try:
        lease = mine.lease(5000)
        lease.view[:] = pattern(5000)
        session = mine._session
        assert session
        for seat in (1, 2, 3, SEATS):
            peer = connect(greets=False)
            peer.push(packed(1, "shmpool", PROTOCOL_VERSION, 0, 12345, session.pool_id, seat))
            welcome = peer.hear()
            assert not getattr(welcome, "resumed", True) or getattr(welcome, "code", None) == Code.NO_SEAT
            peer.close()
            eventually(lambda: len(held_by(broker.address, os.getpid())) == 2)
        assert lease.view == pattern(5000)
        lease.release()
        assert session.connection is not None
    finally:
        mine.close()
