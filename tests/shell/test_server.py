from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

import pytest
from corners import corner
from shell_helpers import PATIENCE, TEST_ENV, BrokerProcess, Wire, wait_until

from shmpool.protocol.codes import Code
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.ledger import FIRST_CELL, GRANT, seat_of, state_of
from shmpool.protocol.messages import (
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Answer,
    Bell,
    Direct,
    Fault,
    Grant,
    Hello,
    Query,
    Refill,
    Refusal,
    Role,
    Topic,
    encode,
)
from shmpool.protocol.names import ledger_name, tickets_path
from shmpool.protocol.states import CellState, State
from shmpool.system.locks import ByteLocks
from shmpoold.core.connections.clients import MOST_OPERATORS
from shmpoold.shell.server import SPARE_CONNECTIONS

StartBroker = Callable[..., BrokerProcess]
Connect = Callable[[], Wire]


#: What `leases` says of an empty pool.
NOTHING = b'{"total":0,"shown":0,"leases":[]}'


def ending(wire: Wire) -> Fault:
    fault = wire.receive()
    assert isinstance(fault, Fault), fault
    with pytest.raises(EOFError):
        wire.receive()
    return fault


GARBAGE = [
    (b"\0\0\0\0", Code.BAD_FRAME),
    (b"GET / HTTP/1.1\r\n\r\n", Code.BAD_FRAME),
    (b"\xff" * 4096, Code.BAD_FRAME),
    (encode_frame(b"\xc1"), Code.BAD_MESSAGE),
    (encode_frame(b"\x91\x63"), Code.BAD_MESSAGE),
    (encode_frame(os.urandom(64)), Code.BAD_MESSAGE),
    (encode_frame(encode(Grant(1, [1]))), Code.BAD_MESSAGE),
    (encode_frame(encode(Bell([1]))), Code.BAD_MESSAGE),
]


def test_garbage_ends_only_its_own_connection(start_broker: StartBroker, connect: Connect) -> None:
    broker = start_broker()
    good = connect()
    good.hello()
    for request, (garbage, code) in enumerate(GARBAGE, 1):
        bad = connect()
        bad.socket.sendall(garbage)
        assert ending(bad).code == code, garbage
        good.send(Refill(request, 0, 1, 1, False))
        assert isinstance(good.receive(), Grant)
    assert "Traceback" not in broker.signal(signal.SIGTERM)


def test_garbage_behind_good_frames_ends_the_connection_after_their_answers(
    start_broker: StartBroker, connect: Connect
) -> None:
    start_broker()
    wire = connect()
    wire.hello()
    wire.socket.sendall(encode_frame(encode(Direct(1, 1 << 39, False))) + b"\0\0\0\0")
    refusal = wire.receive()
    assert isinstance(refusal, Refusal) and refusal.code == Code.TOO_LARGE
    assert ending(wire).code == Code.BAD_FRAME


def test_many_frames_at_once_are_all_answered_in_order(start_broker: StartBroker, connect: Connect) -> None:
    start_broker()
    wire = connect()
    wire.hello()
    wire.send(*(Query(number, Topic.LEASES) for number in range(1, 1001)))
    assert [wire.receive() for _ in range(1000)] == [Answer(number, True, NOTHING) for number in range(1, 1001)]


def test_frame_in_single_bytes_is_put_together(start_broker: StartBroker, connect: Connect) -> None:
    start_broker()
    wire = connect()
    wire.hello()
    for byte in encode_frame(encode(Query(1, Topic.LEASES))):
        wire.socket.sendall(bytes([byte]))
    assert wire.receive() == Answer(1, True, NOTHING)


def test_silence_instead_of_a_hello_ends_the_connection(start_broker: StartBroker, connect: Connect) -> None:
    start_broker(HELLO_DEADLINE=0.2)
    assert "no hello" in ending(connect()).text


def test_half_a_frame_ends_the_connection_in_time(start_broker: StartBroker, connect: Connect) -> None:
    start_broker(STALL_DEADLINE=0.2)
    wire, idle = connect(), connect()
    wire.hello()
    idle.hello()
    wire.socket.sendall(encode_frame(encode(Query(1, Topic.LEASES)))[:-1])
    assert "half a frame" in ending(wire).text
    idle.send(Query(1, Topic.LEASES))
    assert idle.receive() == Answer(1, True, NOTHING)


def flood(wire: Wire) -> None:
    """Ask without reading until the broker takes no more, or ends the connection."""
    questions = encode_frame(encode(Query(1, Topic.STATS))) * 500
    while True:
        wire.socket.sendall(questions)


def test_peer_that_does_not_read_is_ended_and_holds_up_nobody(start_broker: StartBroker, connect: Connect) -> None:
    broker = start_broker(STALL_DEADLINE=1.0)
    slow, good = connect(), connect()
    slow.hello()
    good.hello()
    slow.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):  # it is not listened to any more
        flood(slow)
    good.send(Query(2, Topic.LEASES))
    assert good.receive() == Answer(2, True, NOTHING)
    slow.socket.settimeout(PATIENCE)
    with pytest.raises(ConnectionError):
        flood(slow)
    good.send(Query(3, Topic.LEASES))
    assert good.receive() == Answer(3, True, NOTHING)
    assert "SLOW_READER" in broker.signal(signal.SIGTERM)


def test_dead_client_s_slots_come_back_though_a_child_holds_its_socket(
    start_broker: StartBroker, connect: Connect, address: str
) -> None:
    start_broker()
    code = (
        "import os, sys, subprocess; from shell_helpers import Wire; from shmpool.protocol.messages import Refill\n"
        f"wire = Wire({address!r}); wire.hello(); wire.send(Refill(1, 5, 1, 1024, False)); wire.receive()\n"
        "child = subprocess.Popen(['cat'], stdin=0, stdout=subprocess.DEVNULL, pass_fds=[wire.socket.fileno()])\n"
        "print('granted', flush=True); os.kill(os.getpid(), 9)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], env=TEST_ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.wait(timeout=PATIENCE) == -signal.SIGKILL
    wire = connect()
    wire.hello()
    wire.send(Query(1, Topic.LEASES))
    while (answer := wire.receive()) != Answer(1, True, NOTHING):  # the pidfd's word may take a millisecond
        assert isinstance(answer, Answer)
        wire.send(Query(1, Topic.LEASES))
    client.communicate(timeout=PATIENCE)


def test_operators_and_who_says_nothing_shut_out_no_worker(start_broker: StartBroker, connect: Connect) -> None:
    start_broker()
    operators = [connect() for _ in range(MOST_OPERATORS)]
    for wire in operators:
        wire.hello(Role.OPERATOR)
    one_more = connect()
    one_more.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.OPERATOR, 1, 0, 0))
    assert ending(one_more).code == Code.NO_SEAT
    silent = [connect() for _ in range(8 + SPARE_CONNECTIONS - MOST_OPERATORS + 1)]
    assert ending(silent[0]).code == Code.NO_SEAT
    workers = [connect() for _ in range(8)]
    assert sorted(worker.hello().seat for worker in workers) == list(range(1, 9))
    operators[1].send(Query(1, Topic.LEASES))
    assert operators[1].receive() == Answer(1, True, NOTHING)


def test_running_out_of_descriptors_only_delays_accepting(start_broker: StartBroker, connect: Connect) -> None:
    broker = start_broker()
    first = connect()
    first.hello()
    taken = set(map(int, os.listdir(f"/proc/{broker.pid}/fd")))
    next_free = min(set(range(len(taken) + 1)) - taken)
    _, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (next_free, hard))
    late = connect()
    for number in (1, 2):  # two turns of the broker's loop, so that it has tried
        first.send(Query(number, Topic.LEASES))
        assert first.receive() == Answer(number, True, NOTHING)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (hard, hard))
    late.hello()
    assert "not accepting" in broker.signal(signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_stranger_is_told_that_it_may_not_connect(start_broker: StartBroker, connect: Connect, address: str) -> None:
    start_broker()
    # The file modes keep strangers out; the broker's own look at them is the second wall.
    for path, mode in ((os.path.dirname(address), 0o755), (address, 0o666)):
        os.chmod(path, mode)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sock = socket.socket(socket.AF_UNIX)
            directory = os.open(os.path.dirname(address), os.O_PATH)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            sock.connect(f"/proc/self/fd/{directory}/broker.sock")
            status = 0 if ending(Wire(sock)).code == Code.FORBIDDEN else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert connect().hello().seat == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
@pytest.mark.parametrize(("others", "is_member"), corner((99, True), (0, True), (1000, True), (99, False)))
def test_members_by_a_supplementary_group_are_admitted(others: int, is_member: bool) -> None:
    """What `usermod -aG` makes of somebody, whose primary group is another."""
    group = 4242
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to others
        os.chmod(directory, 0o755)
        address = f"{directory}/run/broker.sock"
        broker = BrokerProcess(address, "--set", "memory_limit=32MiB", "--set", f"group={group}")
        opened = {os.path.dirname(address): 0o755, address: 0o666}  # so that the broker's own look decides
        for path, mode in opened.items():
            os.chmod(path, mode)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setgroups([*range(5000, 5000 + others), *([group] if is_member else [])])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                wire = Wire(address)
                if is_member:
                    status = 0 if wire.hello().seat == 1 else 2
                else:
                    status = 0 if ending(wire).code == Code.FORBIDDEN else 3
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        broker.stop()


def test_impossible_request_is_refused_and_the_connection_goes_on(start_broker: StartBroker, connect: Connect) -> None:
    start_broker()
    wire = connect()
    wire.hello()
    wire.send(Direct(1, 1 << 39, False), Query(2, Topic.LEASES))
    refusal = wire.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == Code.TOO_LARGE
    assert wire.receive() == Answer(2, True, NOTHING)


def test_unread_ticket_of_a_dead_publisher_is_closed_under_its_lock(
    start_broker: StartBroker, connect: Connect, address: str
) -> None:
    """The publisher dies; its ticket's byte is locked by a reader in the middle of opening:
    the broker leaves the cell alone until the byte is free."""
    start_broker("--set", "handle_ttl=0.05", "--set", "memory_limit=16MiB", "--set", "tickets=locks")
    welcome = connect().hello()
    code = (
        "import os, mmap; from shell_helpers import Wire; from shmpool.protocol.messages import Refill\n"
        "from shmpool.protocol.ledger import *; from shmpool.protocol.states import State\n"
        "from shmpool.protocol.names import ledger_name, tickets_path\n"
        f"wire = Wire({address!r}); w = wire.hello()\n"
        "wire.send(Refill(1, 0, 1, 1, False)); row = wire.receive().rows[0]\n"
        "file = open('/dev/shm/' + ledger_name(w.pool_id), 'r+b')\n"
        "words = memoryview(mmap.mmap(file.fileno(), 0)).cast('Q'); at = row * ROW_WORDS\n"
        "word = grant_word(generation_of(words[at]), State.PUBLISHED, w.seat)\n"
        "words[at + EXTENT] = extent_word(10, 1, 1); words[at + FIRST_CELL] = word; words[at] = word\n"
        "print(row, flush=True); os.kill(os.getpid(), 9)"
    )
    with ByteLocks(tickets_path(address)) as reader:
        for row in range(1, welcome.tiers[-1][2]):
            assert reader.try_lock(row * 16)
        done = subprocess.run([sys.executable, "-c", code], env=TEST_ENV, capture_output=True, timeout=PATIENCE)
        row = int(done.stdout)
        with open(f"/dev/shm/{ledger_name(welcome.pool_id)}", "rb") as ledger:

            def word(index: int) -> int:
                return int.from_bytes(os.pread(ledger.fileno(), 8, (row * 16 + index) * 8), "little")

            wait_until(lambda: seat_of(word(GRANT)) == 0)  # the broker's custody
            cell = word(FIRST_CELL)
            asker = connect()
            asker.hello(Role.OPERATOR)
            for number in range(1, 50):  # the broker has had many turns meanwhile
                asker.send(Query(number, Topic.LEASES))
                asker.receive()
            assert word(FIRST_CELL) == cell
            reader.unlock(row * 16)
            wait_until(lambda: state_of(word(GRANT)) == State.FREE)
            assert state_of(word(FIRST_CELL)) == CellState.DONE
