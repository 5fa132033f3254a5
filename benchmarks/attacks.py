"""What hostile and broken peers do to a broker, as fast as one process can, until told to stop.

Each attack is a generator: a step is a few system calls, and at its end it lets go of all."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import select
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

import shmpool
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import MAX_ROWS, generation_of
from shmpool.protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    MAX_INQUIRED,
    MAX_ROWS_PER_MESSAGE,
    MAX_SITE,
    PROTOCOL_VERSION,
    Account,
    Bell,
    Cancel,
    Direct,
    Drop,
    Find,
    Grant,
    Hello,
    Hold,
    Holds,
    LetGo,
    Message,
    Purpose,
    Query,
    Refill,
    Refusal,
    Return,
    Role,
    Take,
    Topic,
    Welcome,
    decode,
    encode,
)
from shmpool.protocol.sizing import MIB, Tier, TierKind, rows_of

#: Connections held at a time, where an attack holds many.
MANY = 256
#: Fewer than `max_clients` of the benchmark's broker and its spare ones.
THOUSAND = 1000
#: Seconds for what is not measured.
PATIENCE = 30.0
#: Requests that each of `MANY` has waiting.
WAITING = 40
#: The memory limit of that broker.
LIMIT = 512 * MIB

Steps = Iterator[None]
M = TypeVar("M")


def garbage(address: str) -> Steps:
    """Connect and send what is no frame; the broker ends it; again."""
    return _refused(address, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", encode_frame(b"\xc1"))


def nested(address: str) -> Steps:
    """The largest frames of the deepest nesting."""
    return _refused(address, encode_frame(b"\x91" * 60000 + b"\x01"))


def half_frames(address: str) -> Steps:
    """Many connections, each a byte further into a long frame."""
    with _many(address, MANY) as peers:
        for peer in peers:
            _say(peer, _hello())
            peer.sendall((60000).to_bytes(4, "little"))
        for peer in itertools.cycle(peers):
            peer.sendall(b"\x91")
            yield


def never_reads(address: str) -> Steps:
    """Ask for the longest answers and read none of them; when the broker ends it, again."""
    question = b"".join(_frame(Query(number, Topic.STATS)) for number in range(1, 9))
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello(Role.OPERATOR))
            while True:
                peer.sendall(question)
                yield
        yield


def thousand(address: str) -> Steps:
    """A thousand connections that say nothing, closed and opened one after the other."""
    with _many(address, THOUSAND) as peers:
        for number in itertools.cycle(range(THOUSAND)):
            peers[number].close()
            peers[number] = _connect(address)
            yield


def false_bells(address: str) -> Steps:
    """The longest bells and returns for rows of others, replayed without a pause."""
    rows = list(range(1, MAX_ROWS_PER_MESSAGE + 1))
    return _flood(address, _frame(Bell(rows)) + _frame(Return(rows)))


def twenty_floods(address: str) -> Steps:
    """Twenty connections that flood the broker side by side with bells, long and short ones."""
    bells = [_frame(Bell([row])) * 64 + _frame(Bell(list(range(1, MAX_ROWS_PER_MESSAGE + 1)))) for row in range(1, 21)]
    with _many(address, len(bells)) as peers:
        for peer in peers:
            _say(peer, _hello())
            peer.setblocking(False)
        left = [memoryview(bell) for bell in bells]
        while True:
            _, ready, _ = select.select([], peers, [], 1.0)
            for at in (at for at, peer in enumerate(peers) if peer in ready):
                left[at] = left[at][peers[at].send(left[at]) :] or memoryview(bells[at])
            yield


def refills(address: str) -> Steps:
    """Refills replayed, always the same number, never read and never given back."""
    return _flood(address, b"".join(_frame(Refill(number, 1, 1, 64, True)) for number in range(1, 9)))


def bell_flood(address: str) -> Steps:
    """One lease, and bells that name its row as often as a message can."""
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello())
            _say(peer, Refill(1, 0, 1, 1, True))
            bell = _frame(Bell(_hear(peer, Grant).rows * MAX_ROWS_PER_MESSAGE))
            while True:
                peer.sendall(bell)
                yield
        yield


def recall_storm(address: str) -> Steps:
    """Ask for all of the memory, which others have a part of, and cancel at once: everybody is to
    give back what is idle, again and again. Many of them never answer."""
    with _many(address, MANY) as peers:
        for peer in peers[1:]:
            _say(peer, _hello())
            _say(peer, Refill(1, 0, 1, 2, True))
            _hear(peer, Grant)
        asking = peers[0]
        _say(asking, _hello())
        nbytes = _largest(_hear(asking, Welcome))
        for number in itertools.count(1):
            _say(asking, Direct(number, nbytes, True))
            _say(asking, Cancel(number))
            _hear(asking, Refusal)
            yield


def _largest(welcome: Welcome) -> int:
    """All that the pool could ever lend."""
    tiers = [Tier(index, TierKind(kind), *rest) for index, (kind, *rest) in enumerate(welcome.tiers)]
    return LIMIT - ledger_bytes(rows_of(tiers), welcome.seats) - header_bytes(welcome.seats)


def turns_for_names(address: str) -> Steps:
    """Ask for the turn to make one name after the other, and let go of a thousand at once, known and unknown."""
    letting_go = _frame(LetGo(list(range(1, MAX_ROWS_PER_MESSAGE + 1))))
    return _deaf(
        address,
        (_frame(Find(number, f"name {number}", Purpose.MAKE, True)) for number in itertools.count(1)),
        lambda number: letting_go if number % 64 == 0 else b"",
    )


def waits_for_names(address: str) -> Steps:
    """Wait for names that nobody gives, and for one that many wait for."""
    questions = (_frame(Find(number, f"name {number % 7}", Purpose.OPEN, True)) for number in itertools.count(1))
    return _deaf(address, questions)


def holds(address: str) -> Steps:
    """Hold one shared publication again and again under new numbers."""
    with shmpool.Pool(address) as pool:
        made = pool.share(b"attacked", name=f"attacked {os.getpid()}")
        row, generation = made._row, generation_of(made._granted)
        yield from _deaf(address, (_frame(Hold(number, row, generation)) for number in itertools.count(1)))


def holds_without_end(address: str) -> Steps:
    """Tell what is held after a connection was lost, and never that it was all."""
    tellings = (
        _frame(Holds([[first + at, 1 + at, 1] for at in range(MAX_ROWS_PER_MESSAGE)], False))
        for first in itertools.count(1, MAX_ROWS_PER_MESSAGE)
    )
    return _deaf(address, tellings)


def deaf_workers(address: str) -> Steps:
    """Ask for what must be refused, with a long text each time, and read none of it."""
    return _deaf(address, (_frame(Direct(number, 1 << 39, True)) for number in itertools.count(1)))


def everything(address: str) -> Steps:
    """Random messages of every kind that the schema accepts, sound and absurd ones, and read none of what comes."""
    chance = random.Random(1)

    def number() -> int:
        return chance.choice((1, 2, chance.randrange(1, 2000), (1 << 32) - 1))

    def rows() -> list[int]:
        return [chance.choice((chance.randrange(1, 80_000), MAX_ROWS - 1)) for _ in range(chance.choice((1, 4, 200)))]

    kinds: list[Callable[[], Message]] = [
        lambda: Refill(number(), chance.randrange(9), chance.choice((1, 300)), chance.choice((1, 256)), True),
        lambda: Direct(number(), chance.choice((0, 1, 1 << 20, LIMIT, (1 << 40) - 1)), chance.random() < 0.5),
        lambda: Cancel(number()),
        lambda: Return(rows()),
        lambda: Bell(rows()),
        lambda: Query(number(), chance.randrange(len(Topic))),
        lambda: Take(number(), rows()[0], chance.randrange(13), chance.getrandbits(64), chance.random() < 0.5),
        lambda: Account([[row, True, "x" * 100] for row in rows()[:8]], False),
        lambda: Hold(number(), rows()[0], chance.randrange(5)),
        lambda: LetGo([number() for _ in range(chance.choice((1, 1000)))]),
        lambda: Holds([[number(), row, 1] for row in rows()], chance.random() < 0.5),
        lambda: Find(number(), f"name {chance.randrange(2000)}", chance.choice(list(Purpose)), True),
        lambda: Drop(number(), f"name {chance.randrange(2000)}"),
    ]
    messages = [b"".join(_frame(chance.choice(kinds)()) for _ in range(16)) for _ in range(256)]
    return _deaf(address, itertools.cycle(messages))


def churn(address: str) -> Steps:
    """Connect, be granted something, and go without a word: each leaves a seat that has to be settled."""
    for number in itertools.count(1):
        with contextlib.suppress(OSError), _connect(address) as peer:
            _say(peer, _hello())
            _say(peer, Refill(number, 0, 1, 16, False))
            _hear(peer, Grant)
        yield


def ten_thousand_waiters(address: str) -> Steps:
    """Ten thousand requests that nothing serves, of one process (the broker refuses what is more than it may have
    under way); the oldest is cancelled and asked again, again and again."""
    with _many(address, MANY) as peers:
        _say(peers[0], _hello())
        nbytes = _largest(_hear(peers[0], Welcome))
        _say(peers[0], Refill(1, 0, 1, 2, True))  # so that nobody can have all
        _hear(peers[0], Grant)
        asking = b"".join(_frame(Direct(number, nbytes, True)) for number in range(1, WAITING + 1))
        again = _frame(Cancel(1)) + _frame(Direct(1, nbytes, True))
        greeted = [False] * len(peers)
        for at in itertools.cycle(range(1, len(peers))):
            try:
                peers[at].sendall(again if greeted[at] else _frame(_hello()) + asking)
                greeted[at] = True
            except OSError:  # the broker has ended it, or does not read it any more
                peers[at].close()
                greeted[at] = False
                with contextlib.suppress(OSError):
                    peers[at] = _connect(address)
            yield


def runs_waiting(address: str) -> Steps:
    """Waiters for long runs of every length, of which some are granted and kept, so that there is memory for none of
    the others, and some for who asks for little; some are cancelled and asked again."""
    chance = random.Random(1)
    with _many(address, 8) as peers:
        for peer in peers:
            _say(peer, _hello())
        chunk_tiers = [at for at, (kind, *_) in enumerate(_hear(peers[0], Welcome).tiers) if kind == TierKind.CHUNK]
        for number in itertools.cycle(range(1, 1001)):
            for peer in peers:
                refill = Refill(number, chance.choice(chunk_tiers), chance.randrange(1500, 4000), 1, True)
                peer.sendall(_frame(Cancel(number)) + _frame(refill))
            yield


def letting_go(address: str) -> Steps:
    """Let go of holds, cancel requests and drop names that there are not, a thousand a message where that can be."""
    letting_go = _frame(LetGo(list(range(1, MAX_ROWS_PER_MESSAGE + 1))))
    frames = (
        letting_go + b"".join(_frame(Cancel(number)) for number in range(1, 33)) + _frame(Drop(number, "x" * 80))
        for number in itertools.count(1)
    )
    return _deaf(address, frames)


def half_hellos(address: str) -> Steps:
    """Hundreds of connections whose hello comes byte by byte, and never to its end."""
    hello = _frame(_hello())
    with _many(address, 2 * MANY) as peers:
        sent = [0] * len(peers)
        for at in itertools.cycle(range(len(peers))):
            if sent[at] == len(hello) - 1:
                peers[at].close()
                peers[at], sent[at] = _connect(address), 0
            with contextlib.suppress(OSError):  # the broker has ended it
                peers[at].sendall(hello[sent[at] : sent[at] + 1])
            sent[at] += 1
            yield


def accounts(address: str) -> Steps:
    """Answers to what was not asked, with the longest texts."""
    account = _frame(Account([[row, True, "x" * MAX_SITE] for row in range(1, MAX_INQUIRED + 1)], False))
    return _flood(address, account * 8)


def slow_readers(address: str) -> Steps:
    """Many that ask for the longest answers, and read them byte by byte."""
    with _many(address, MANY // 8) as peers:
        for peer in peers:
            _say(peer, _hello(Role.OPERATOR))
            for number in range(1, 9):
                _say(peer, Query(number, Topic.STATS))
        for peer in itertools.cycle(peers):
            with contextlib.suppress(OSError):
                peer.recv(1)
            yield


def takes(address: str) -> Steps:
    """Ask for tickets that there are not, and that are others'."""
    frames = (_frame(Take(number, number % 60_000 + 1, 0, number << 24, False)) for number in itertools.count(1))
    return _deaf(address, frames)


#: By name, in the order of the table.
ATTACKS: dict[str, Callable[[str], Steps]] = {
    "garbage": garbage,
    "deep nesting": nested,
    "half frames": half_frames,
    "never reads": never_reads,
    "1,000 connections": thousand,
    "false bells": false_bells,
    "20 floods": twenty_floods,
    "refills replayed": refills,
    "bell flood": bell_flood,
    "recall storm": recall_storm,
    "turns for names": turns_for_names,
    "waits for names": waits_for_names,
    "holds": holds,
    "holds without end": holds_without_end,
    "deaf workers": deaf_workers,
    "everything": everything,
    "churn": churn,
    "ten thousand waiters": ten_thousand_waiters,
    "runs waiting": runs_waiting,
    "letting go": letting_go,
    "half hellos": half_hellos,
    "accounts": accounts,
    "slow readers": slow_readers,
    "takes": takes,
}


def endless(name: str, address: str, failed: Callable[[], object]) -> Steps:
    """An attack that begins anew where the broker ends it, or keeps it waiting: it attacks itself too."""
    while True:
        with contextlib.suppress(OSError):
            yield from ATTACKS[name](address)
        failed()
        yield


def _refused(address: str, *junk: bytes) -> Steps:
    for data in itertools.cycle(junk):
        with _connect(address) as peer, contextlib.suppress(OSError):
            peer.sendall(data)
            while peer.recv(4096):
                pass
        yield


def _flood(address: str, data: bytes) -> Steps:
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello())
            while True:
                peer.sendall(data)
                yield
        yield


def _deaf(address: str, frames: Iterator[bytes], more: Callable[[int], bytes] = lambda number: b"") -> Steps:
    """Send these and what is *more* after so many, and read nothing; when the broker ends it, again."""
    while True:
        with _connect(address) as peer, contextlib.suppress(OSError):
            _say(peer, _hello())
            for number, frame in enumerate(frames, 1):
                peer.sendall(frame + more(number))
                yield
        yield


def _connect(address: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(address)
    peer.settimeout(1.0)  # a step that waits for longer is over: see `endless`
    return peer


@contextlib.contextmanager
def _many(address: str, count: int) -> Iterator[list[socket.socket]]:
    peers = [_connect(address) for _ in range(count)]
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()


def _hello(role: Role = Role.WORKER) -> Message:
    return Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, secrets.randbits(64), 0, 0)


def _frame(message: Message) -> bytes:
    return encode_frame(encode(message))


def _say(peer: socket.socket, message: Message) -> None:
    peer.sendall(_frame(message))


def _hear(peer: socket.socket, kind: type[M]) -> M:
    """The next message of a kind; others are thrown away. Raises OSError at the end."""
    while True:
        head = peer.recv(4, socket.MSG_WAITALL)
        body = peer.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL) if head else b""
        if not body:
            raise ConnectionResetError("the broker has ended it")
        message = decode(body, FROM_BROKER)
        if isinstance(message, kind):
            return message


@contextlib.contextmanager
def victim(address: str, rows: int) -> Iterator[tuple[int, int]]:
    """A process of its own that holds so many rows, to be killed: its pid and its seat."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _hold(address, rows, writing)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            yield pid, int(pipe.readline())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _hold(address: str, rows: int, writing: int) -> None:
    with _connect(address) as peer:
        peer.settimeout(PATIENCE)  # what the last attack has left may still be under way
        _say(peer, _hello())
        seat, held = _hear(peer, Welcome).seat, 0
        for number in itertools.count(1):
            if held >= rows:
                break
            _say(peer, Refill(number, 0, 1, rows - held, True))
            held += len(_hear(peer, Grant).rows)
        os.write(writing, b"%d\n" % seat)
        signal.pause()
