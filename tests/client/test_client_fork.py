"""Forks, spawns and exits: each process has a seat of its own, and nobody ends another's."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import client_workers
import numpy as np
import pytest
from client_helpers import (
    ENV,
    KIB,
    MIB,
    PATIENCE,
    Connect,
    Start,
    StartDaemon,
    child,
    eventually,
    hear,
    in_fork,
    lease_all,
    of_pid,
    out,
    pattern,
    run_preloaded,
    run_script,
)
from corners import corner, sizes

import shmpool
from shmpool import Handle, LeaseReleased

SIZES = [4000, 300_000, 2 * MIB]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def read(pool: shmpool.Pool, handle: Handle) -> bytes:
    with pool.open(handle) as buffer:
        return bytes(buffer.view)


def test_forked_child_gets_a_seat_of_its_own_on_first_use(pool: shmpool.Pool) -> None:
    (ours,) = client_workers.own_seats(pool.address)

    def look() -> tuple[list[int], list[int], bytes]:
        before = client_workers.own_seats(pool.address)
        data = read(pool, publish(pool, b"of the child"))
        return before, client_workers.own_seats(pool.address), data

    before, after, data = in_fork(look)
    assert before == []
    assert len(after) == 1
    assert after != [ours]
    assert data == b"of the child"
    assert client_workers.own_seats(pool.address) == [ours]
    assert read(pool, publish(pool, b"of the parent")) == b"of the parent"


@pytest.mark.parametrize("nbytes", SIZES)
def test_inherited_lease_raises_and_buffer_reads_in_the_child_and_both_go_on(pool: shmpool.Pool, nbytes: int) -> None:
    lease = pool.lease(nbytes)
    lease.view[:] = pattern(nbytes)
    buffer = pool.open(publish(pool, pattern(nbytes, 2)))

    def use_them() -> list[str]:
        seen = []
        uses = [lambda: lease.view, lambda: lease.write(bytes(nbytes)), lease.publish, lambda: lease.publish_many(2)]
        for use in [*uses, lambda: lease.chunks]:
            try:
                use()
                seen.append("worked")
            except LeaseReleased:
                seen.append("LeaseReleased")
        assert buffer.view == pattern(nbytes, 2) == b"".join(buffer.chunks)
        with lease, buffer:
            pass
        lease.release()
        buffer.release()
        with pytest.raises(LeaseReleased):
            _ = buffer.view
        return seen

    assert in_fork(use_them) == ["LeaseReleased"] * 5
    assert pool.stats().active_buffers == 2
    assert lease.view == pattern(nbytes)
    assert buffer.view == pattern(nbytes, 2)
    buffer.release()
    assert read(pool, lease.publish()) == pattern(nbytes)


@pytest.mark.parametrize("nbytes", SIZES)
def test_child_that_drops_what_it_inherited_releases_nothing_and_warns_of_nothing(
    pool: shmpool.Pool, nbytes: int
) -> None:
    things = [pool.lease(nbytes), pool.open(publish(pool, pattern(nbytes)))]

    def drop() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            things.clear()
            pool.close()
            return len(client_workers.query(pool.address).clients)

    assert in_fork(drop) == 1
    assert pool.stats().active_buffers == 2
    assert things[1].view == pattern(nbytes)
    for thing in things:
        thing.release()


@pytest.mark.parametrize("nbytes", SIZES)
def test_inherited_arrays_show_what_they_showed_and_write_to_nobody(pool: shmpool.Pool, nbytes: int) -> None:
    lease = pool.lease(nbytes)
    written = np.frombuffer(lease.view, dtype=np.uint8)
    written[:] = 0xAB
    with pool.open(publish(pool, b"\xcd" * nbytes)) as buffer:
        opened = np.frombuffer(buffer.view, dtype=np.uint8)  # outlives the block

    def scribble() -> set[int]:
        seen = {int(value) for array in (written, opened) for value in (array.min(), array.max())}
        written[:] = 0xFF
        return seen

    assert in_fork(scribble) == {0xAB, 0xCD}
    assert (written.min(), written.max()) == (0xAB, 0xAB)
    assert (opened.min(), opened.max()) == (0xCD, 0xCD)
    assert pool.stats().active_buffers == 2
    written = opened = None  # type: ignore[assignment]
    lease.release()


def test_child_reads_what_the_parent_publishes_and_the_other_way(pool: shmpool.Pool) -> None:
    for nbytes in SIZES:
        handle = publish(pool, pattern(nbytes))
        assert in_fork(lambda handle=handle: read(pool, handle)) == pattern(nbytes)  # type: ignore[misc]
        handles = in_fork(lambda nbytes=nbytes: [publish(pool, pattern(nbytes, i)) for i in range(3)])  # type: ignore[misc]
        # The child has gone without a word: its publications are the broker's now.
        assert [read(pool, handle) for handle in handles] == [pattern(nbytes, i) for i in range(3)]


@pytest.mark.parametrize("forks", [8, pytest.param(50, marks=pytest.mark.long)])
def test_forks_while_the_pool_works(connect: Connect, forks: int) -> None:
    """The helper thread is there before and after each of them."""
    pool, other = connect(), connect()
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                data = b"%08d" % number * (1 + number % 3000)
                if read(other, publish(pool, data)) != data:
                    raise AssertionError(f"object {number} was another's")
            except BaseException as error:
                errors.append(error)
                return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: this test has a thread of its own
        thread = threading.Thread(target=work)
        thread.start()
        try:
            for number in range(forks):
                use = number % 2
                assert in_fork(lambda use=use: read(pool, publish(pool, b"child")) if use else b"") == b"child" * use  # type: ignore[misc]
        finally:
            stop.set()
            thread.join()
    assert errors == []
    eventually(lambda: len(pool.stats().clients) == 2)


@pytest.mark.parametrize("forks", sizes(5, 20, 200))
def test_pools_that_come_and_go_beside_forks_leave_no_seat(
    start: Start, monkeypatch: pytest.MonkeyPatch, forks: int
) -> None:
    broker = start(memory_limit="64MiB", max_clients=200)
    stop = threading.Event()
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: errors.append((what.exc_value, what.object)))

    def cycle(pool: shmpool.Pool) -> None:
        for nbytes in (600, 50_000, 300_000, 1_200_000):
            assert read(pool, publish(pool, pattern(nbytes))) == pattern(nbytes)

    def until_stopped(act: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            errors.append(error)

    def come_and_go() -> None:
        pool = broker.connect()
        cycle(pool)
        lease = pool.lease(70_000)
        if next(numbers) % 2:
            pool.close()
        del pool, lease

    numbers = itertools.count()
    with broker.connect() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: it forks beside threads
        warnings.simplefilter("ignore", ResourceWarning)  # of pools that are collected unclosed, and of their leases
        acts = [lambda: cycle(pool), come_and_go, come_and_go, lambda: in_fork(lambda: cycle(pool))]
        threads = [threading.Thread(target=until_stopped, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        try:
            for _ in range(forks):
                in_fork(lambda: cycle(pool))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        gc.collect()
        assert errors == []
        eventually(lambda: len(pool.stats().clients) == 1, "the end of every other seat")
        assert pool.stats().active_buffers == 0


def test_pool_that_is_closed_while_its_process_forks_holds_nothing_of_the_next(start: Start) -> None:
    """A hook that was registered earlier runs between our guard and the fork."""
    script = """
import os, sys, time
closing = []
os.register_at_fork(before=lambda: closing and closing.pop().close())
import shmpool

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

other = shmpool.connect(sys.argv[1])
for _ in range(3):
    closing.append(shmpool.connect(sys.argv[1]))
    fork()
    with shmpool.connect(sys.argv[1]) as pool, pool.lease(5000) as lease:
        buffer = pool.open(lease.publish())
        fork()
        buffer.release()
until = time.monotonic() + 20
while (len(other.stats().clients), other.stats().active_buffers) != (1, 0) and time.monotonic() < until:
    time.sleep(0.01)
print(len(other.stats().clients), other.stats().active_buffers)
"""
    done = run_preloaded(script, start().address)
    assert (done.returncode, done.stdout) == (0, "1 0\n"), done.stderr


def test_fork_beside_helpers_alone_warns_of_nothing(start: Start) -> None:
    """From Python 3.12 on os.fork warns of other threads, such as a test's worker has itself. The helpers rest
    meanwhile; another thread is still warned of."""
    script = """
import os, select, sys, threading, warnings
import shmpool

warnings.simplefilter("always")
pools = [shmpool.connect(sys.argv[1]) for _ in range(3)]
for _ in range(20):
    assert [thread.name for thread in threading.enumerate()].count("shmpool-helper") == 3
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
for pool in pools:
    with pool.lease(5000) as lease:
        pool.open(lease.publish()).release()
    pool.close()
threading.Thread(target=select.poll().poll, daemon=True).start()
pool = shmpool.connect(sys.argv[1])
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    if not os.fork():
        os._exit(0)
    os.wait()
print(len(told), flush=True)
os._exit(0)
"""
    done = run_script(script, start().address)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{int(sys.version_info >= (3, 12))}\n")


def test_forked_grandchildren_have_seats_of_their_own(pool: shmpool.Pool) -> None:
    held = pool.lease(100)
    held.view[:] = b"p" * 100

    def have_children() -> list[bytes]:
        lease = pool.lease(100)
        lease.view[:] = b"c" * 100
        array = np.frombuffer(lease.view, dtype=np.uint8)

        def look() -> bytes:
            assert array.tobytes() == b"c" * 100
            return read(pool, publish(pool, b"of the grandchild"))

        first = in_fork(look)
        second = in_fork(look)
        assert array.tobytes() == b"c" * 100
        array = None  # type: ignore[assignment]
        return [first, second, read(pool, lease.publish())]

    assert in_fork(have_children) == [b"of the grandchild"] * 2 + [b"c" * 100]
    assert held.view == b"p" * 100
    held.release()


def test_child_that_forks_before_its_first_use_works(pool: shmpool.Pool) -> None:
    assert in_fork(lambda: in_fork(lambda: read(pool, publish(pool, b"deep")))) == b"deep"


def test_child_of_a_thread_works_with_the_pool(connect: Connect) -> None:
    pool = connect()
    results: list[bytes] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        thread = threading.Thread(target=lambda: results.append(in_fork(lambda: read(pool, publish(pool, b"thread")))))
        thread.start()
        thread.join()
    assert results == [b"thread"]


def test_exiting_child_takes_only_its_own_with_it(pool: shmpool.Pool) -> None:
    lease = pool.lease(5000)
    lease.view[:] = pattern(5000)
    pid = os.fork()
    if pid == 0:
        own = [pool.lease(5000), pool.lease(MIB), pool.lease(300_000)]
        os._exit(len(own))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    eventually(lambda: pool.stats().active_buffers == 1)
    eventually(lambda: not of_pid(pool.stats(), pid))
    assert read(pool, lease.publish()) == pattern(5000)


def test_executed_child_holds_nothing_of_the_parent(pool: shmpool.Pool) -> None:
    lease, direct = pool.lease(5000), pool.lease(MIB)
    direct.view[:1] = b"d"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1)
        look = "import os; print(*[os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
        look += " if os.path.exists(f'/proc/self/fd/{fd}')], sep='\\n')"
        os.execve(sys.executable, [sys.executable, "-c", look], ENV)
    os.close(writing)
    with open(reading) as pipe:
        targets = pipe.read()
    os.waitpid(pid, 0)
    assert "/dev/shm" not in targets
    assert "tickets" not in targets
    assert pool.stats().active_buffers == 2
    lease.release()
    direct.release()


def test_process_that_executes_another_program_gives_everything_back(pool: shmpool.Pool) -> None:
    """Its pid lives on, so only its seat's lock tells."""
    script = """
import os, sys, shmpool
pool = shmpool.connect(sys.argv[1])
leases = [pool.lease(n) for n in (1000, 300_000, 2 << 20)]
os.execv("/bin/cat", ["cat"])
"""
    started = os.path.basename(os.path.realpath(sys.executable))
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", script, pool.address], env=ENV, stdin=subprocess.PIPE) as process:
            exe = f"/proc/{process.pid}/exe"
            eventually(lambda exe=exe: os.path.basename(os.readlink(exe)) != started)  # type: ignore[misc]
            eventually(lambda: len(pool.stats().clients) == 1, "the end of the seat", seconds=5)
            assert out(pool.stats()) == 0
            assert process.poll() is None
            process.stdin.close()  # type: ignore[union-attr]


def test_forked_child_holds_no_segment_of_the_parent_s_leases(pool: shmpool.Pool) -> None:
    """A direct segment that is gone must be gone: a child that inherited its writer's
    descriptor would keep its memory, uncounted."""
    direct = pool.lease(2 * MIB)
    direct.view[:1] = b"d"
    gc.collect()  # what other tests have left

    def look() -> list[str]:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if os.path.exists(link)]
        with open("/proc/self/maps") as maps:
            mapped = [line.strip() for line in maps if "/dev/shm" in line]
        return [target for target in targets if "/dev/shm" in target] + mapped

    assert in_fork(look) == []
    assert direct.view[0] == ord("d")
    direct.release()


def test_fork_during_a_blocked_lease_leaves_it_waiting(connect: Connect, start_full: shmpool.Broker) -> None:
    holder, pool = start_full.connect(), start_full.connect()
    with holder, pool:
        held = lease_all(holder, 64 * KIB)
        got: list[int] = []

        def wait() -> None:
            with pool.lease(64 * KIB, timeout=PATIENCE) as lease:
                got.append(lease.nbytes)

        thread = threading.Thread(target=wait)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            thread.start()
            eventually(lambda: any("wait" in alert for alert in pool.stats().alerts))
            assert in_fork(lambda: len(held)) == len(held)
        held.pop().release()
        thread.join(15)
        assert got == [64 * KIB]
        for lease in held:
            lease.release()


@pytest.fixture
def start_full(start: object) -> shmpool.Broker:
    return start(memory_limit="2MiB", pooled_sizes=["64KiB"])  # type: ignore[operator, no-any-return]


def test_child_of_a_process_that_closed_its_private_broker_waits_for_none() -> None:
    with shmpool.Broker(memory_limit="16MiB") as broker:
        pool = broker.connect(timeout=PATIENCE)

    def asks() -> list[str]:
        said = []
        for ask in (lambda: pool.lease(10), lambda: pool.get(b"h" * 24), lambda: shmpool.connect(broker.address)):
            with pytest.raises(shmpool.BrokerUnavailable) as caught:
                ask()
            said.append(str(caught.value))
        return said

    closed = f"the private broker at {broker.address} was closed: nobody will answer there any more"
    assert in_fork(asks) == [closed] * 3
    pool.close()


# --- spawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_pool_is_an_argument_of_a_process(pool: shmpool.Pool, method: str) -> None:
    for nbytes in SIZES[:2]:
        with child(method, client_workers.publish_with_pool, pool, nbytes) as (process, pipe):
            pid, handle = hear(pipe)
            assert pid == process.pid != os.getpid()
            assert read(pool, handle) == b"p" * nbytes
            assert len(of_pid(pool.stats(), pid)) == 1
    assert len(client_workers.own_seats(pool.address)) == 1


def test_pickled_pool_is_the_process_s_pool_of_that_address_and_mode(connect: Connect) -> None:
    import pickle

    pool = connect(strict=True)
    assert pickle.loads(pickle.dumps(pool)) is pool
    assert len(client_workers.own_seats(pool.address)) == 1


# --- the end of the interpreter --------------------------------------------------------------------

LEAVE = """
import sys, threading, warnings
warnings.simplefilter("default")
import shmpool
pool = shmpool.connect(sys.argv[1])
lease, direct, run = pool.lease(5000), pool.lease(2 << 20), pool.lease(300_000)
lease.view[:4] = b"left"
view = run.view[:10]
with pool.lease(100) as other:
    handle = other.publish()
buffer = pool.open(handle)
pool.lease(10).publish()
{more}
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "more",
    ["import numpy; array = numpy.frombuffer(buffer.view, dtype='u1')",
     *corner("class C: pass\nc = C(); c.c = c; c.things = lease, buffer, pool; del lease, buffer, pool",
             "threading.Thread(target=lambda: pool.lease(100).release()).start()",
             "", "print('done'); sys.exit(0)", "pool.close(); del pool")],
)  # fmt: skip
def test_interpreter_that_ends_with_open_leases_says_nothing_and_keeps_nothing(start: object, more: str) -> None:
    broker = start(handle_ttl="100ms")  # type: ignore[operator]
    script = LEAVE.replace("{more}", more).replace("pool.close()", "warnings.simplefilter('ignore'); pool.close()")
    done = run_script(script, broker.address)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    with broker.connect() as pool:
        eventually(lambda: out(pool.stats()) == 0)


def test_strict_interpreter_that_ends_with_open_views_says_nothing(start: object) -> None:
    broker = start(handle_ttl="100ms")  # type: ignore[operator]
    done = run_script(LEAVE.replace("{more}", ""), broker.address, SHMPOOL_STRICT="1")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    assert "LeakedView" not in done.stderr


def test_threads_and_handlers_that_outlive_the_main_thread_s_work_are_silent(start: object) -> None:
    """A daemon thread that goes on, and a handler that was registered before the import, and so runs last."""
    script = """
import atexit, sys, threading, time

def last():
    with pool.lease(5000) as lease:
        handle = lease.publish()
    pool.open(handle).release()
    lease = pool.lease(2 << 20)
    lease.write(bytes(2 << 20))
    print("last", flush=True)

atexit.register(last)
import shmpool

def go_on(nbytes):
    while True:
        with pool.lease(nbytes) as lease:
            lease.write(bytes(nbytes))
            handle = lease.publish()
        pool.open(handle).release()
        begun.set()

pool = shmpool.connect(sys.argv[1])
for nbytes in (1000, 300_000, 2 << 20):
    begun = threading.Event()
    threading.Thread(target=go_on, args=(nbytes,), daemon=True).start()
    begun.wait()
"""
    broker = start(handle_ttl="100ms")  # type: ignore[operator]
    for _ in range(2):
        done = run_script(script, broker.address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "last\n", "")
    with broker.connect() as pool:
        eventually(lambda: out(pool.stats()) == 0)


#: 3.12 warns of forks beside threads.
FORKS_IN_THE_HELPER = """
import gc, os, sys, threading, time
import shmpool
class Forks:
    def __init__(self):
        self.circle = self
    def __del__(self):
        if threading.current_thread().name != "shmpool-helper":
            Forks()
        elif not forked:
            forked.append(os.fork())
            if not forked[-1]:
                gc.set_threshold(0)
forked = []
pool = shmpool.connect(sys.argv[1])
gc.set_threshold(1)
Forks()
while not forked:
    pool.lease(1000).release()
    pool._session.wake_helper()
    time.sleep(0.001)
gc.set_threshold(0)
print(os.waitpid(forked[0], 0)[1])
pool.lease(1000).release()
pool.close()
"""


def test_a_helper_that_a_finalizer_forks_in_goes_on_in_the_parent_and_ends_in_the_child(start: Start) -> None:
    """It counted itself out in the child, where nobody had counted it in, and printed an error."""
    line = [*UNWARNED, "-c", FORKS_IN_THE_HELPER, start().address]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("0\n", "")


UNWARNED = (sys.executable, "-W", "ignore::DeprecationWarning")

LATE = """if True:
    import importlib.abc, os, sys, threading, time, traceback
    import shmpool

    pool, began, verdicts, over = shmpool.connect(sys.argv[1]), threading.Event(), [], []

    class Slow(importlib.abc.MetaPathFinder):
        '''Each import takes a while, in which others fork.'''

        def find_spec(self, name, path=None, target=None):
            if me == threading.get_ident():
                began.set()
                time.sleep(0.02)

    def use():
        with pool.lease(2 << 20) as lease:
            pool.discard(lease.publish())
        try:
            pool.lease(1 << 40, timeout=0)
        except shmpool.InvalidSize:
            pass
        assert pool.get(pool.put([b'x' * 5000] * 3)) == [b'x' * 5000] * 3
        with pool.share({'a': 1}) as shared:
            assert shared.get() == {'a': 1}
        with pool.open_writer(10) as file:
            file.write(b'abc')
        pool.discard(file.handle)
        queue = shmpool.Queue(pool=pool)
        queue.put(7)
        assert queue.get(timeout=20) == 7
        queue.close()

    def forks():
        while began.wait() and not over:
            began.clear()
            pid = os.fork()
            if not pid:
                try:
                    use()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            verdicts.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    forker, me = threading.Thread(target=forks), threading.get_ident()
    forker.start()
    sys.meta_path.insert(0, Slow())
    use()
    over.append(True)
    began.set()
    forker.join()
    pool.close()
    print(len(verdicts), set(verdicts))
"""


def test_a_child_of_a_fork_in_the_middle_of_a_late_import_has_the_whole_module(start: Start) -> None:
    """A verb imports what is behind it when it is first called: half of that was the child's, and its import's lock
    nobody's."""
    broker = start(memory_limit="64MiB")
    done = subprocess.run(
        [*UNWARNED, "-c", LATE, broker.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    forks, verdicts = done.stdout.split(maxsplit=1)
    assert int(forks) > 0 and verdicts.strip() == "{0}"


LOGS = """if True:
    import importlib.abc, os, sys, threading
    from importlib.machinery import PathFinder
    import shmpool

    pool, imports, forks = shmpool.connect(sys.argv[1]), threading.Event(), threading.Event()
    os.register_at_fork(before=lambda: forks.set())
    import logging  # its hook, which takes all its locks, comes first then, and ours last

    class Loader(importlib.abc.Loader):
        def __init__(self, loader):
            self.loader = loader
        def create_module(self, spec):
            return self.loader.create_module(spec)
        def exec_module(self, module):
            imports.set()
            forks.wait()
            logging.getLogger(module.__name__)  # as many a module does
            self.loader.exec_module(module)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            spec = PathFinder.find_spec(name, path)
            if spec is not None:
                spec.loader = Loader(spec.loader)
            return spec

    sys.meta_path.insert(0, Finder())
    puts = threading.Thread(target=lambda: pool.discard(pool.put([1])))
    puts.start()
    imports.wait()
    pid = os.fork()
    if not pid:
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    puts.join()
    pool.close()
"""


@pytest.mark.long
def test_a_fork_and_a_late_import_that_wait_for_one_another_go_on(start: Start) -> None:
    """What another hook of the fork has taken, the import wants: the fork does not wait for it without an end."""
    broker = start(memory_limit="64MiB")
    done = subprocess.run([*UNWARNED, "-c", LOGS, broker.address], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


AT_THE_END = """if True:
    import sys
    import shmpool

    class Asks:
        def __init__(self):
            self.shmpool, self.address = shmpool, sys.argv[1]

        def __del__(self):
            pool = self.shmpool.connect(self.address)
            try:
                pool.lease(3 << 20)
            except self.shmpool.BrokerUnavailable as error:
                print(error, flush=True)
            pool.close()

    last = Asks()
"""


def test_finalizers_at_the_interpreter_s_end_wait_for_no_thread_that_never_begins(start: Start) -> None:
    broker = start()
    done = subprocess.run(
        [*UNWARNED, "-c", AT_THE_END, broker.address], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the interpreter ends: nothing is asked of a broker any more\n"


CONNECTS_AT_EXIT = """if True:
    import asyncio, atexit, sys, threading
    import shmpool, shmpool.aio
    ended, went_on = threading.Event(), threading.Event()

    async def connect():
        (await shmpool.aio.connect(sys.argv[1])).close()

    def work(connect):
        threading.main_thread().join()
        ended.wait()
        try:
            connect()
        finally:
            went_on.set()

    @atexit.register
    def at_exit():
        ended.set()
        went_on.wait(0.2)

    for connect_here in (lambda: shmpool.connect(sys.argv[1]).close(), lambda: asyncio.run(connect())):
        threading.Thread(target=work, args=(connect_here,), daemon=True).start()
"""


def test_daemon_threads_that_connect_while_the_interpreter_ends_say_nothing(start: Start) -> None:
    """CPython 3.12 refuses their helpers the thread."""
    broker = start()
    done = subprocess.run(
        [*UNWARNED, "-c", CONNECTS_AT_EXIT, broker.address], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")


LOST = """if True:
    import os, signal, sys, threading
    import shmpool
    said, begun = threading.Event(), threading.Event()
    os.register_at_fork(before=begun.set)
    import logging  # its hook comes first, so it has its lock when ours waits for the helper

    class Asks(logging.Handler):
        def emit(self, record):
            said.set()
            begun.wait()
            logging.getLogger("another")

    logging.getLogger("shmpool").addHandler(Asks())
    pool = shmpool.connect(sys.argv[1])
    os.kill(int(sys.argv[2]), signal.SIGKILL)
    said.wait()
    pid = os.fork()
    if not pid:
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    pool.close()
"""
COLLECTS = """if True:
    import gc, os, sys, threading, time
    import shmpool
    from shmpool.system.here import FORKING, HERE

    pool, other = shmpool.connect(sys.argv[1]), shmpool.connect(sys.argv[1])
    helper, link, arrived, got = pool._session.helper, pool._session.link, threading.Event(), []

    def look(phase, info):  # as a finalizer, in the middle of what the helper does
        if phase == "start" and threading.current_thread() is helper.thread and not link.is_resting and not got:
            got.append(None)
            arrived.set()
            while not HERE[FORKING]:
                time.sleep(0.001)
            got.append(pool.names())  # imports late

    gc.callbacks.append(look)
    gc.set_threshold(1)

    def work():
        while not arrived.is_set():
            try:
                pool.lease(2 << 20, timeout=0.1).release()
            except shmpool.LeaseTimeout:
                pass  # its helper is busy

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    pid = os.fork()
    if not pid:
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    while len(got) < 2:
        time.sleep(0.001)
    pool.close()
    other.close()
"""


@pytest.mark.parametrize("script", [LOST, COLLECTS], ids=["logs", "collects"])
def test_a_fork_and_a_helper_that_wait_for_one_another_go_on(daemon: StartDaemon, address: str, script: str) -> None:
    """The helper is in others' code, a handler of logging's or a finalizer, which waits for the fork, or for what
    another hook of it has taken."""
    broker = daemon(memory_limit="64MiB")
    line = [*UNWARNED, "-c", script, address, str(broker.process.pid)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    broker.process.kill()


INTERRUPTED = """if True:
    import os, sys, threading
    import shmpool

    class Interrupted(BaseException):
        pass

    def imports_late(place):  # whether an exception came at that place in the door
        seen = 0
        def trace(frame, event, arg):
            nonlocal seen
            # Whose block it is (`load`'s here) is not looked at: between its end and the lock's release nothing is
            # called, so no handler comes, but a trace function does.
            code = frame.f_code
            if not code.co_filename.endswith("importing.py") or code.co_name == "load":
                return trace
            frame.f_trace_opcodes = True
            seen += 1
            if seen == place:
                sys.settrace(None)
                raise Interrupted
            return trace
        vars(shmpool).pop("Stats", None)  # a lazy export is looked up anew, once it is gone
        sys.settrace(trace)
        try:
            shmpool.Stats
        except Interrupted:
            return True
        finally:
            sys.settrace(None)
        return False

    def forks():
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    place = 1
    while imports_late(place):
        fork = threading.Thread(target=forks)
        fork.start()
        fork.join(5)
        assert not fork.is_alive(), place  # nobody is in the door
        place += 1
    print(place > 20)
"""


def test_an_exception_in_the_door_of_late_imports_leaves_it() -> None:
    """At any bytecode: a fork of another thread would wait for who had gone."""
    done = subprocess.run([*UNWARNED, "-c", INTERRUPTED], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
