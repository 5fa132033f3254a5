"""What was open for reading at a fork stays right in the child, for as long as anybody who inherited
it keeps it; and nobody who inherited anything stores, sends or closes for the parent."""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from client_helpers import ENV, MIB, PATIENCE, Connect, Start, StartDaemon, eventually, in_fork, run_script
from corners import across, corner

import shmpool
from shmpool import Handle
from shmpool.stats import query, query_buffers, query_leases
from shmpool.unanswered import read_stats

SIZES = [4000, 300_000, 2 * MIB]
#: One of them in the default setting.
ONE_SIZE = corner(*SIZES)

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # 3.12: forks beside threads


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def room_for(nbytes: int) -> str:
    """A broker's memory: some slots of a size. All of them are written, which is what these tests cost."""
    return "16MiB" if nbytes >= MIB else "2MiB"


def write_over(pool: shmpool.Pool, nbytes: int) -> None:
    """Write into everything that can be had."""
    leases = []
    with contextlib.suppress(shmpool.ShmpoolError):
        while True:
            leases.append(pool.lease(nbytes, timeout=0))
            leases[-1].view[:] = b"\x63" * nbytes
    for lease in leases:
        lease.release()


class Child:
    """Looks at an array when it is told to, and ends when it is told."""

    def __init__(self, array: Any, first: Callable[[], None] = lambda: None) -> None:
        (there, self._tell), (self._hear, here) = os.pipe(), os.pipe()
        me, others = os.getpid(), children_of(os.getpid())
        try:
            self.pid = os.fork()
        except KeyboardInterrupt:  # in a hook; it may come in the child
            (self.pid,) = children_of(me) - others if os.getpid() == me else {0}
        if self.pid == 0:
            try:
                os.close(self._tell)
                os.close(self._hear)
                first()
                while os.read(there, 1):
                    arrays = array if isinstance(array, list) else [array]
                    os.write(here, bytes(sorted({byte for one in arrays for byte in np.unique(one).tolist()})))
                del array, arrays
            finally:
                os._exit(0)
        os.close(there)
        os.close(here)

    def look(self) -> set[int]:
        os.write(self._tell, b"?")
        return set(os.read(self._hear, 256))

    def end(self) -> None:
        os.close(self._tell)
        os.waitpid(self.pid, 0)
        assert os.read(self._hear, 1) == b"", "somebody has inherited the child's pipe"
        os.close(self._hear)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._tell)
        os.close(self._hear)


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def shmpool_command(*arguments: str) -> str:
    line = [sys.executable, "-m", "shmpool.cli", *arguments]
    return subprocess.run(line, env=ENV, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def close_all_descriptors() -> None:
    keep = {int(fd) for fd in os.listdir("/proc/self/fd") if _is_pipe(fd)}
    for fd in range(3, 1024):
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _is_pipe(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    except OSError:
        return False


def fork_again() -> None:
    """Go on in a child of the child's, whose parent ends."""
    if os.fork():
        os._exit(0)


FIRST: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "closes all descriptors": close_all_descriptors,
    "forks again": fork_again,
    "forks twice": lambda: [fork_again() for _ in range(2)].clear(),
    "collects": lambda: print(gc.collect()),
}


@pytest.mark.parametrize(("nbytes", "first"), across(SIZES, tuple(FIRST)))
def test_inherited_array_is_right_after_the_parent_has_released_it(start: Start, nbytes: int, first: str) -> None:
    broker = start(memory_limit=room_for(nbytes))
    with broker.connect() as pool:
        buffer = pool.open(publish(pool, b"\x07" * nbytes))
        array = np.frombuffer(buffer.view, np.uint8)
        child = Child(array, FIRST[first])
        assert child.look() == {7}
        del array
        buffer.release()
        write_over(pool, nbytes)
        assert child.look() == {7}
        assert pool.stats().active_buffers == 1
        child.end()
        eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize("nbytes", ONE_SIZE)
def test_inherited_array_is_right_after_the_parent_has_forgotten_its_buffer(start: Start, nbytes: int) -> None:
    """Nobody released it: the next call finds it, and has to wait for the child."""
    broker = start(memory_limit=room_for(nbytes))
    with broker.connect() as pool:
        buffer = pool.open(publish(pool, b"\x07" * nbytes))
        array = np.frombuffer(buffer.view, np.uint8)
        child = Child(array)
        del array
        with pytest.warns(ResourceWarning, match="not released"):
            del buffer
        with pool.open(publish(pool, b"\x08" * nbytes)) as other:
            assert other.view[0] == 8
        write_over(pool, nbytes)
        assert child.look() == {7}
        child.end()
        eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize("nbytes", ONE_SIZE)
def test_inherited_array_is_right_after_the_parent_has_closed_its_pool(start: Start, nbytes: int) -> None:
    broker = start(memory_limit=room_for(nbytes))
    with broker.connect() as other:
        pool = broker.connect()
        with pool.open(publish(pool, b"\x07" * nbytes)) as buffer:
            array = np.frombuffer(buffer.view, np.uint8)
            child = Child(array)
        del array
        pool.close()
        write_over(other, nbytes)
        assert child.look() == {7}
        assert len(other.stats().clients) == 2
        child.end()
        eventually(lambda: len(other.stats().clients) == 1)
        assert other.stats().active_buffers == 0


PARENT = """
import os, sys, time, numpy as np, shmpool
pool = shmpool.connect(sys.argv[1])
nbytes = int(sys.argv[2])
with pool.lease(nbytes) as lease:
    lease.view[:] = b"\\x07" * nbytes
    handle = lease.publish()
buffer = pool.open(handle)
array = np.frombuffer(buffer.view, np.uint8)
held = pool.lease(5000)
if os.fork() == 0:
    print("reads", flush=True)
    for line in sys.stdin:
        print(sorted(set(array.tolist())), flush=True)
    os._exit(0)
time.sleep(600)
"""


def orphan_of_a_killed_parent(address: str, nbytes: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, address, str(nbytes)],
        env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "reads\n"
    process.kill()
    process.wait(PATIENCE)
    return process


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    assert process.stdout.read() == ""
    process.stdout.close()


@pytest.mark.parametrize("nbytes", ONE_SIZE)
def test_inherited_array_is_right_after_the_parent_was_killed(start: Start, nbytes: int) -> None:
    """All else that the parent had is settled at once."""
    broker = start(memory_limit=room_for(nbytes))
    process = orphan_of_a_killed_parent(broker.address, nbytes)
    with broker.connect() as pool:
        eventually(lambda: pool.stats().active_buffers == 1)
        write_over(pool, nbytes)
        assert ask(process) == "[7]"
        let_go(process)
        eventually(lambda: pool.stats().active_buffers == 0)
        eventually(lambda: len(pool.stats().clients) == 1)


def test_inherited_array_is_right_over_a_restart_of_the_broker(daemon: StartDaemon, address: str) -> None:
    first = daemon(on_stop="keep")
    process = orphan_of_a_killed_parent(address, 4000)
    eventually(lambda: query(address).active_buffers == 1)
    first.end(signal.SIGKILL)
    daemon(on_stop="remove")
    with shmpool.connect(address) as pool:
        write_over(pool, 4000)
        assert ask(process) == "[7]"
        assert pool.stats().active_buffers == 1
        let_go(process)
        eventually(lambda: pool.stats().active_buffers == 0)


def open_lines(address: str) -> list[dict[str, Any]]:
    return [line for line in query_leases(address)["leases"] if line["state"] == "open"]


def children_shown(address: str) -> list[int]:
    return [pid for line in open_lines(address) for pid in line["children"]]


def test_children_that_read_on_are_shown_with_their_pids(start: Start) -> None:
    """Those that live, also where their parent has released, and what they had opened since."""
    broker = start(memory_limit="16MiB")
    with broker.connect() as pool:
        buffers = [pool.open(publish(pool, b"\x07" * nbytes)) for nbytes in (*SIZES, *SIZES)]
        arrays = [np.frombuffer(buffer.view, np.uint8) for buffer in buffers]
        assert children_shown(broker.address) == []
        children = [Child(arrays) for _ in range(5)]
        grandchild = Child(arrays, fork_again)
        arrays.clear()
        for child in (*children, grandchild):
            child.look()
        (deep,) = set(children_shown(broker.address)) - {child.pid for child in children}
        for buffer in buffers:
            buffer.release()
        expected = sorted([deep, *(child.pid for child in children)])
        while children:
            assert children_shown(broker.address) == expected
            (line,) = open_lines(broker.address)
            assert (line["pid"], line["buffers"]) == (os.getpid(), len(buffers))
            child = children.pop()
            expected.remove(child.pid)
            child.kill()
        assert f"in its fork {deep}" in shmpool_command("leases", "--socket", broker.address)
        each = shmpool_command("leases", "--each", "--socket", broker.address)
        assert each.count(f"{os.getpid()}, its fork {deep}") == len(buffers)
        grandchild.end()
        eventually(lambda: pool.stats().active_buffers == 0)
        assert children_shown(broker.address) == []


def test_child_of_a_killed_parent_is_shown_with_its_pid(start: Start) -> None:
    broker = start(memory_limit="16MiB")
    process = orphan_of_a_killed_parent(broker.address, 4000)
    eventually(lambda: query(broker.address).active_buffers == 1)
    (line,) = open_lines(broker.address)
    assert (line["pid"], line["connected"]) == (process.pid, False)
    (pid,) = line["children"]
    assert pid != process.pid and os.path.exists(f"/proc/{pid}")
    (buffer,) = query_buffers(broker.address)["leases"]
    assert (buffer["readers"], buffer["children"]) == ([process.pid], [pid])
    (client,) = query(broker.address).clients
    assert (client.pid, client.children) == (process.pid, [pid])
    assert f"in its fork {pid}" in shmpool_command("stats", "--socket", broker.address)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        (client,) = read_stats(broker.address, shmpool.BrokerUnavailable("it is stopped")).clients
        assert (client.pid, client.children) == (process.pid, [pid])
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    let_go(process)
    eventually(lambda: open_lines(broker.address) == [])


def test_memory_that_a_child_lets_go_of_is_had_by_who_waits(start: Start) -> None:
    broker = start(memory_limit="2MiB", pooled_sizes=["64KiB"])
    with broker.connect() as pool:
        buffers = [pool.open(publish(pool, b"\x07" * 60_000))]
        leases = []
        with contextlib.suppress(shmpool.LeaseTimeout):
            while True:
                leases.append(pool.lease(60_000, timeout=0))
        child = Child(np.frombuffer(buffers[0].view, np.uint8))
        buffers.pop().release()
        with pytest.raises(shmpool.LeaseTimeout):
            pool.lease(60_000, timeout=0.1)
        child.end()
        pool.lease(60_000, timeout=10).release()
        for lease in leases:
            lease.release()


def test_forks_in_a_row_hold_what_was_open_until_the_last_child_reads_no_more(start: Start) -> None:
    """Nothing is opened, released or looked at in between, so they share what tells of them."""
    broker = start(memory_limit="1MiB")
    with broker.connect() as pool:
        for order in (1, -1):
            buffer = pool.open(publish(pool, b"\x07" * 5000))
            array = np.frombuffer(buffer.view, np.uint8)
            children = [Child(array) for _ in range(3)]
            del array
            buffer.release()
            while children:
                write_over(pool, 5000)
                assert {byte for child in children for byte in child.look()} == {7}
                assert pool.stats().active_buffers == 1
                children.pop(0 if order > 0 else -1).kill()
            eventually(lambda: pool.stats().active_buffers == 0, "all read no more")


def test_what_is_opened_just_after_a_fork_is_not_held_by_its_child(start: Start) -> None:
    broker = start(memory_limit="1MiB")
    with broker.connect() as pool:
        for _ in range(3):
            inherited = pool.open(publish(pool, b"\x07" * 5000))
            handle = publish(pool, b"\x08" * 5000)
            array = np.frombuffer(inherited.view, np.uint8)
            child = Child(array)
            buffer = pool.open(handle)
            assert child.look() == {7}
            buffer.release()
            eventually(lambda: pool.stats().active_buffers == 1, "what was opened behind the fork is back")
            del array
            inherited.release()
            assert child.look() == {7}
            child.end()
            eventually(lambda: pool.stats().active_buffers == 0, "nothing out")


def test_later_forks_do_not_hold_what_is_opened_and_released_meanwhile(start: Start) -> None:
    """A program that forks all the time, whose children live on, loses no memory."""
    broker = start(memory_limit="2MiB", pooled_sizes=["64KiB"])
    with broker.connect() as pool:
        pinned = pool.open(publish(pool, b"\x01" * 60_000))
        children = []
        try:
            for number in range(12):
                children.append(Child(np.frombuffer(pinned.view, np.uint8)))
                for _ in range(40):  # more than there is room for at once
                    with pool.open(publish(pool, bytes([number]) * 60_000)) as buffer:
                        assert buffer.view[0] == number
            eventually(lambda: pool.stats().active_buffers == 1)
            assert [child.look() for child in children] == [{1}] * 12
        finally:
            for child in children:
                child.kill()
        pinned.release()


# --- the first instructions of a child -----------------------------------------------------------------


class Held:
    """What a thread has in a `threading.local`: a child's interpreter drops it before any hook."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._is_there, self._go = threading.Event(), threading.Event()
        self._local = threading.local()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._is_there.wait(PATIENCE)

    def _run(self) -> None:
        self._local.thing = self._make()
        self._is_there.set()
        self._go.wait()
        del self._local.thing

    def end(self) -> None:
        self._go.set()
        self._thread.join()


@pytest.fixture
def held() -> Iterator[Callable[[Callable[[], Any]], Held]]:
    made: list[Held] = []

    def make(what: Callable[[], Any]) -> Held:
        made.append(Held(what))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.mark.parametrize("nbytes", ONE_SIZE)
def test_buffer_in_a_thread_s_local_outlives_a_fork(
    start: Start, held: Callable[[Callable[[], Any]], Held], nbytes: int
) -> None:
    broker = start(memory_limit=room_for(nbytes))
    with broker.connect() as pool:
        views = []

        def open_it() -> shmpool.Buffer:
            buffer = pool.open(publish(pool, b"\x07" * nbytes))
            views.append(buffer.view)
            return buffer

        one = held(open_it)
        for _ in range(3):
            in_fork(lambda: None)
        write_over(pool, nbytes)
        assert views[0][0] == views[0][-1] == 7
        views.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it is collected unreleased
            one.end()
        eventually(lambda: pool.stats().active_buffers == 0)


class Finalizer:
    """A user's, that calls the pool."""

    def __init__(self, *calls: Callable[[], Any]) -> None:
        self.calls = calls
        self.owner = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            for call in self.calls:
                with contextlib.suppress(shmpool.ShmpoolError):
                    call()


def test_user_s_finalizer_in_a_child_gives_back_nothing_of_the_parent(
    connect: Connect, held: Callable[[Callable[[], Any]], Held]
) -> None:
    pool = connect()
    leases = [pool.lease(nbytes) for nbytes in (*SIZES, *SIZES)]
    for lease in leases:
        lease.write(b"abc" + bytes(lease.nbytes - 3))
    buffer, handle, other = pool.open(publish(pool, b"\x07" * 5000)), publish(pool, b"h"), publish(pool, b"o")
    calls: list[Callable[[], Any]] = [lambda lease=lease: lease.write(b"\x63" * lease.nbytes) for lease in leases]  # type: ignore[misc]
    calls += [lambda lease=lease: lease.write_parts([(0, b"cc")]) for lease in leases]  # type: ignore[misc]
    calls += [lease.release for lease in leases[:3]] + [lease.publish for lease in leases[3:]]
    more = [buffer.release, lambda: pool.open(handle), lambda: pool.discard(other), lambda: pool.lease(100), pool.close]
    held(lambda: Finalizer(*calls, *more))
    in_fork(lambda: None)
    assert pool.stats().active_buffers == len(leases) + 3
    assert buffer.view[0] == 7
    for waiting in (handle, other):
        pool.open(waiting).release()
    buffer.release()
    for lease in leases:
        assert bytes(lease.view[:3]) == b"abc"
        pool.discard(lease.publish())


def test_user_s_finalizer_in_a_child_that_is_not_itself_yet_connects_to_nothing(
    connect: Connect, held: Callable[[Callable[[], Any]], Held]
) -> None:
    pool, refused = connect(), list[str]()

    def connects() -> None:
        try:
            shmpool.connect(pool.address).close()
        except shmpool.BrokerUnavailable as error:
            refused.append(str(error))

    def goes_on() -> tuple[list[str], int]:
        with shmpool.connect(pool.address) as own:
            return refused, len(own.stats().clients)

    held(lambda: Finalizer(connects))
    assert in_fork(goes_on) == (["this process is just being forked: its pools are not its own yet"], 2)


# --- hooks that fail -------------------------------------------------------------------------------


class Interrupter:
    """Raises in the n-th place of the hooks where the interpreter looks for signals."""

    LOOKS = ("CALL", "JUMP_BACKWARD", "RESUME")

    def __init__(self, n: int, within: str = os.sep + "shmpool" + os.sep) -> None:
        self.left, self.is_done, self.place, self._within = n, False, "", within
        self._last: dict[int, str] = {}

    def __enter__(self) -> Interrupter:
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 looks at settrace whether any frame wants them
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        if self._within not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            last = self._last.get(id(frame), "")
            self._last[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self.left -= last.startswith(self.LOOKS)
            if self.left <= 0 and not self.is_done:
                self.is_done, self.place = True, f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self._on_event


def unready(broker: shmpool.Broker, is_ready: bool) -> contextlib.AbstractContextManager[object]:
    """With another pool that was not there at the last fork there is more to do before the next."""
    return contextlib.nullcontext() if is_ready else broker.connect()


@pytest.mark.parametrize(
    ("is_ready", "step"),
    [(True, 3), *corner((False, 11), (True, 1), (False, 1))],
)
def test_hook_that_is_interrupted_leaves_no_window_unguarded(
    start: Start, monkeypatch: pytest.MonkeyPatch, is_ready: bool, step: int
) -> None:
    vanished: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", vanished.append)  # it gets what a hook raises
    broker = start(memory_limit="2MiB")
    with broker.connect() as pool:
        for _ in range(2):  # CPython 3.13 shows instructions from a function's second traced call on
            with unready(broker, is_ready):
                with pool.open(publish(pool, b"\x07" * 5000)) as buffer, Interrupter(sys.maxsize) as whole:
                    Child(np.frombuffer(buffer.view, np.uint8)).end()
                eventually(lambda: pool.stats().active_buffers == 0, "nothing out")
        places = sys.maxsize - whole.left
        interrupted = 0
        for n in range(1, places + 1, step):
            buffer = pool.open(publish(pool, b"\x07" * 5000))
            array = np.frombuffer(buffer.view, np.uint8)
            with unready(broker, is_ready), Interrupter(n) as interrupter:
                child = Child(array)
            del array
            buffer.release()
            write_over(pool, 5000)
            assert child.look() == {7}, f"interrupted at place {n}"
            child.end()
            eventually(lambda n=n: pool.stats().active_buffers == 0, f"interrupted at place {n}")  # type: ignore[misc]
            interrupted += interrupter.is_done
        assert places > (2 if is_ready else 40) and interrupted * step >= places // 2
    assert vanished == []
    for fd in os.listdir("/proc/self/fd"):  # one may be left that was opened and not yet noted
        with contextlib.suppress(OSError):
            if "-header" in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(int(fd))


# --- many children, little room ----------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
def test_open_that_is_interrupted_while_it_notes_a_fork_leaves_nothing_held(
    start: Start, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    """Who opens first after a fork does what the fork has left undone."""
    broker = start(memory_limit="2MiB")
    with broker.connect() as pool:

        def act(interrupter: Interrupter) -> None:
            buffer, handle = pool.open(publish(pool, b"\x07" * 5000)), publish(pool, b"\x08" * 5000)
            child = Child(np.frombuffer(buffer.view, np.uint8))
            try:
                with interrupter:
                    pool.open(handle).release()
            except KeyboardInterrupt:
                with contextlib.suppress(shmpool.ShmpoolError):
                    pool.discard(handle)
            buffer.release()
            write_over(pool, 5000)
            assert child.look() == {7}, interrupter.place
            child.end()
            eventually(lambda: pool.stats().active_buffers == 0, f"interrupted at {interrupter.place}")

        turns = places = 0
        while turns < 2 or (places <= 2 and turns < 50):  # the helper may have noted the fork before
            act(whole := Interrupter(sys.maxsize, "guards.py"))
            turns, places = turns + 1, sys.maxsize - whole.left
        for n in range(1, places + 1, step):
            act(Interrupter(n, "guards.py"))
        assert places > 2
    assert "could not be guarded" not in caplog.text


@pytest.mark.parametrize("children", [30, pytest.param(500, marks=pytest.mark.long)])
def test_child_costs_no_descriptor(start: Start, children: int) -> None:
    script = """
import os, resource, sys, numpy as np, shmpool
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
pool = shmpool.connect(sys.argv[1])
with pool.lease(5000) as lease:
    lease.view[:] = b"\\x07" * 5000
    handle = lease.publish()
buffer = pool.open(handle)
array = np.frombuffer(buffer.view, np.uint8)
before = len(os.listdir("/proc/self/fd"))
ready, go, results = os.pipe(), os.pipe(), os.pipe()
pids = []
for _ in range(int(sys.argv[2])):
    pids.append(os.fork())
    if pids[-1] == 0:
        os.close(go[1])
        os.read(go[0], 1)
        os.write(results[1], bytes([set(array.tolist()) == {7}]))
        os._exit(0)
after = len(os.listdir("/proc/self/fd"))
del array
buffer.release()
for _ in range(50):
    with pool.lease(5000) as lease:
        lease.view[:] = b"\\x63" * 5000
        pool.discard(lease.publish())
os.close(go[1])
for pid in pids:
    os.waitpid(pid, 0)
few = 6 <= after - before <= 8  # the pipes, and what a thread of the pool has open for a moment
print(few, os.read(results[0], 1000) == b"\\x01" * len(pids))
"""
    broker = start()
    done = run_script(script, broker.address, str(children))
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr


def test_fork_that_cannot_be_guarded_says_so_and_holds_what_is_open(start: Start) -> None:
    script = """
import logging, os, resource, sys, numpy as np, shmpool
logging.basicConfig(stream=sys.stdout, format="%(message)s")
pool = shmpool.connect(sys.argv[1])
with pool.lease(5000) as lease:
    lease.view[:] = b"\\x07" * 5000
    handle = lease.publish()
buffer = pool.open(handle)
array = np.frombuffer(buffer.view, np.uint8)
go, results = os.pipe(), os.pipe()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
pid = os.fork()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
if pid == 0:
    os.close(go[1])
    os.read(go[0], 1)
    os.write(results[1], bytes([set(array.tolist()) == {7}]))
    os._exit(0)
del array
buffer.release()
for _ in range(50):
    with pool.lease(5000) as lease:
        lease.view[:] = b"\\x63" * 5000
        pool.discard(lease.publish())
os.close(go[1])
os.waitpid(pid, 0)
print(os.read(results[0], 1) == b"\\x01", pool.stats().active_buffers)
"""
    broker = start()
    done = run_script(script, broker.address)
    assert done.returncode == 0, done.stderr
    said, last = done.stdout.splitlines()
    assert said.startswith("a fork could not be guarded")
    assert last == "True 1"


# --- writers ---------------------------------------------------------------------------------------

#: A child that is held up before it has copied what its parent was writing: by a hook of the user's.
WRITER = """
import contextlib, gc, os, sys, warnings
go, results = os.pipe(), os.pipe()
os.register_at_fork(after_in_child=lambda: (os.close(go[1]), os.read(go[0], 1)))
import numpy as np, shmpool
warnings.simplefilter("ignore")

def write_over(pool, nbytes):
    leases = []
    with contextlib.suppress(shmpool.ShmpoolError):
        while True:
            leases.append(pool.lease(nbytes, timeout=0))
            leases[-1].view[:] = b"\\x63" * nbytes
    for lease in leases:
        lease.release()
    return len(leases)

def release(lease):
    lease.release()

def publish_and_read(lease):
    pool.open(lease.publish()).release()

def publish_for_two(lease):
    for handle in lease.publish_many(2):
        pool.open(handle).release()

def share(lease):
    lease.publish_shared().release()

def drop(lease):
    pass

def close(lease):
    lease.release()
    pool.close()

end, nbytes = globals()[sys.argv[2]], int(sys.argv[3])
pool, other = shmpool.connect(sys.argv[1]), shmpool.connect(sys.argv[1])
most = write_over(other, nbytes)
lease = pool.lease(nbytes)
array = np.frombuffer(lease.view, np.uint8)
array[:] = 7
pid = os.fork()
if pid == 0:
    os.write(results[1], bytes(np.unique(array).tolist()))
    os._exit(0)
del array
end(lease)
del lease
write_over(other, nbytes)
if not pool.closed:
    write_over(pool, nbytes)
os.write(go[1], b"!")
os.waitpid(pid, 0)
print(set(os.read(results[0], 300)))
print(len([other.lease(nbytes, timeout=20) for _ in range(most)]) - most)
"""


#: Killed while its child is held up; the child tells when it is told.
KILLED = """
import os, signal, sys
os.register_at_fork(after_in_child=lambda: sys.stdin.read(1))
import numpy as np, shmpool
pool, nbytes = shmpool.connect(sys.argv[1]), int(sys.argv[2])
lease = pool.lease(nbytes)
array = np.frombuffer(lease.view, np.uint8)
array[:] = 7
if os.fork() == 0:
    print(set(np.unique(array).tolist()), flush=True)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("nbytes", ONE_SIZE)
def test_writer_s_array_is_copied_before_its_slot_is_used_again_after_a_kill(start: Start, nbytes: int) -> None:
    broker = start(memory_limit=room_for(nbytes))
    line = [sys.executable, "-c", KILLED, broker.address, str(nbytes)]
    with (
        broker.connect() as pool,
        subprocess.Popen(line, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        process.wait(PATIENCE)
        assert pool.stats().active_buffers == 1
        write_over(pool, nbytes)
        assert process.communicate("!", PATIENCE)[0] == "{7}\n"
        eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize(
    ("nbytes", "end"),
    [
        *across(SIZES, ("release", "share", "close")),
        *(
            pytest.param(nbytes, end, marks=pytest.mark.long)
            for nbytes in SIZES
            for end in ("publish_and_read", "publish_for_two", "drop")
        ),
    ],
)
def test_writer_s_array_is_copied_before_its_slot_is_used_again(start: Start, nbytes: int, end: str) -> None:
    """However the lease ends and whoever writes, and what waited for the child is had again."""
    broker = start(memory_limit=room_for(nbytes))
    done = run_script(WRITER, broker.address, end, str(nbytes))
    assert (done.returncode, done.stdout) == (0, "{7}\n0\n"), done.stderr


def test_writer_s_array_whose_segment_was_cut_short_kills_no_child(start: Start) -> None:
    """As happens to a spare that serves a smaller object, while a thread that the child does not have was
    just looking through its old map."""
    script = """
import os, sys
go = os.pipe()
os.register_at_fork(after_in_child=lambda: (os.close(go[1]), os.read(go[0], 1)))
import numpy as np, shmpool
pool = shmpool.connect(sys.argv[1])
lease = pool.lease(3 << 20)
array = np.frombuffer(lease.view, np.uint8)
array[:] = 7
pid = os.fork()
if pid == 0:
    array[-1] = 8
    os._exit(array[:4096].tolist() != [7] * 4096 or int(array[-1]) != 8)
segments = ["/dev/shm/" + name for name in os.listdir("/dev/shm")]
os.truncate(next(path for path in segments if os.stat(path).st_size == 3 << 20), 4096)
os.close(go[1])
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""
    broker = start(memory_limit="16MiB")
    done = run_script(script, broker.address)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
