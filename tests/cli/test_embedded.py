"""The private broker: it starts, says what is wrong, ends with its parent whatever happens,
and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ENV, PATIENCE, eventually, is_alive, script, segments, segments_of
from corners import corner

import shmpool
from shmpool import launch
from shmpool.stats import query
from shmpoold.shell.files import RuntimeFiles
from shmpoold.shell.segments import Access

#: Where how a broker starts is what is tested, or another interpreter takes the place of this one.
fresh = pytest.mark.fresh

SMALL = {"memory_limit": "16MiB", "max_clients": 8}


def is_gone(broker: shmpool.Broker, names: set[str]) -> bool:
    return not is_alive(broker.pid) and not names & segments() and not os.path.exists(broker.address)


# --- a life ----------------------------------------------------------------------------------------


@fresh
def test_a_broker_serves_from_its_construction_to_its_close() -> None:
    broker = shmpool.Broker(**SMALL)
    names = segments_of(broker.pid)
    assert names
    with broker.connect() as pool, pool.lease(100) as lease:
        lease.write(bytes(100))
    assert broker.is_running()
    broker.close()
    assert not broker.is_running()
    assert is_gone(broker, names)
    assert not os.path.exists(os.path.dirname(broker.address))
    broker.close()


def test_a_block_ends_it() -> None:
    with shmpool.Broker(**SMALL) as broker:
        names = segments_of(broker.pid)
        assert query(broker.address).clients == []
    assert is_gone(broker, names)
    with pytest.raises(shmpool.BrokerUnavailable):
        broker.connect(timeout=0.2)


def test_settings_reach_the_broker() -> None:
    with shmpool.Broker(memory_limit="16MiB", max_clients=3, pooled_sizes=["4KiB", 8192]) as broker:
        stats = query(broker.address)
    assert stats.memory["limit"] == 16 * 2**20
    assert [tier.size for tier in stats.tiers if tier.kind == "pooled"] == [4096, 8192]


def test_its_directory_is_private() -> None:
    with shmpool.Broker(**SMALL) as broker:
        directory = os.stat(os.path.dirname(broker.address))
        assert stat.S_IMODE(directory.st_mode) == 0o700
        assert directory.st_uid == os.getuid()


def test_a_runtime_directory_is_used_unless_its_path_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path(f"/tmp/runtime-{os.getpid()}")
    long = tmp_path / ("x" * 100)
    for directory in (short, long):
        directory.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        with shmpool.Broker(**SMALL) as broker:
            assert Path(broker.address).is_relative_to(short)
        assert list(short.iterdir()) == []
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
        with shmpool.Broker(**SMALL) as broker:
            assert not Path(broker.address).is_relative_to(long)
    finally:
        short.rmdir()


def test_a_chosen_socket_is_used(tmp_path: Path) -> None:
    chosen = tmp_path / "my.sock"
    with shmpool.Broker(socket=chosen, **SMALL) as broker:
        assert broker.address == str(chosen)
        broker.connect().close()
    assert list(tmp_path.iterdir()) == []


def test_repr_names_process_and_address() -> None:
    with shmpool.Broker(**SMALL) as broker:
        assert repr(broker) == f"<shmpool.Broker pid={broker.pid} address={broker.address!r}>"


# --- what can be wrong at the start --------------------------------------------------------------------


@fresh
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memory_limit": object()}, "memory_limit"),
        *corner(
            ({"memory_limit": "12 parsecs"}, "memory_limit"),
            ({"memory_limit": 1}, "memory_limit"),
            ({"memory_limt": "16MiB"}, "memory_limt"),
            ({"on_stop": "explode"}, "on_stop"),
            ({"max_clients": 0}, "max_clients"),
        ),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_stays(
    settings: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(shmpool.ConfigError, match=words):
        shmpool.Broker(**settings)
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_broker_at_a_socket_is_refused_and_harms_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = str(tmp_path / "one.sock")
    with shmpool.Broker(socket=chosen, **SMALL) as first:
        names = segments_of(first.pid)
        with pytest.raises(shmpool.ShmpoolError, match="already"):
            shmpool.Broker(socket=chosen, **SMALL)
        assert names <= segments()
        with first.connect() as pool, pool.lease(10) as lease:
            lease.write(bytes(10))
    capfd.readouterr()


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in place of the interpreter that brokers are started with; $READY
    is the descriptor to report to."""

    def use(body: str) -> None:
        path = tmp_path / "interpreter"
        path.write_text(f'#!/bin/bash\nREADY="${{@: -1}}"\n{body}\n')
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


@fresh
@pytest.mark.parametrize(
    ("body", "words"),
    [
        *corner(("exit 3", "exit status 3"), ("kill -9 $$", "signal 9")),
        ('eval "exec $READY>&-"; exit 4', "exit status 4"),
        *corner(
            ('eval "echo nonsense >&$READY"', "nonsense"),
            ('eval "echo [1] >&$READY"', "make no sense"),
            ('eval "echo {} >&$READY"', "make no sense"),
        ),
        ("""eval "echo '{\\"error\\":\\"OSError\\",\\"message\\":\\"no luck\\"}' >&$READY" """, "no luck"),
        *corner(("trap '' TERM; while :; do sleep 0.1; done", "not ready within"), ("sleep 60", "not ready within")),
    ],
)
def test_a_broker_that_does_not_start_is_unavailable(
    body: str, words: str, interpreter: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "START_TIMEOUT", 0.5)
    monkeypatch.setattr(launch, "STOP_TIMEOUT", 0.5)
    interpreter(body)
    with pytest.raises(shmpool.BrokerUnavailable, match=words):
        shmpool.Broker()


@fresh
@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_an_interpreter_that_cannot_be_run_is_said(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(shmpool.BrokerUnavailable):
        shmpool.Broker()


def test_no_directory_at_all_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(shmpool.ConfigError, match="XDG_RUNTIME_DIR"):
        shmpool.Broker()


# --- ends that nobody asked for -------------------------------------------------------------------------


def test_a_killed_brokers_leftovers_are_removed() -> None:
    broker = shmpool.Broker(**SMALL)
    names = segments_of(broker.pid)
    os.kill(broker.pid, signal.SIGKILL)
    eventually(lambda: not is_alive(broker.pid), "the broker's death")
    assert names <= segments()
    eventually(lambda: not broker.is_running(), "the end of its last thread: until then nobody can wait for it")
    broker.close()
    assert is_gone(broker, names)
    assert not os.path.exists(os.path.dirname(broker.address))


def test_a_broker_that_does_not_stop_is_killed_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STOP_TIMEOUT", 0.3)
    broker = shmpool.Broker(**SMALL)
    names = segments_of(broker.pid)
    os.kill(broker.pid, signal.SIGSTOP)
    broker.close()
    assert is_gone(broker, names)


def test_a_pool_that_another_broker_took_up_is_left_alone(tmp_path: Path) -> None:
    chosen = str(tmp_path / "one.sock")
    first = shmpool.Broker(socket=chosen, **SMALL)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: not is_alive(first.pid), "the broker's death")
    with shmpool.Broker(socket=chosen, **SMALL) as second:
        names = segments_of(second.pid)
        first.close()
        assert names <= segments()
        second.connect().close()


@fresh
def test_an_unclosed_broker_warns_and_ends_when_collected() -> None:
    kept = [shmpool.Broker(**SMALL)]
    pid, names = kept[0].pid, segments_of(kept[0].pid)
    with pytest.warns(ResourceWarning, match=f"pid={pid}"):
        kept.clear()
    assert not is_alive(pid)
    assert not names & segments()


def test_a_forked_child_never_ends_the_parents_broker() -> None:
    with shmpool.Broker(**SMALL) as broker:
        pid = os.fork()
        if pid == 0:
            try:
                broker.close()
                alive = broker.is_running()
                broker.connect().close()
                del broker
                gc.collect()
            finally:
                os._exit(1 if alive else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert broker.is_running()
        broker.connect().close()


START_AND_REPORT = (
    "import shmpool, sys; b = shmpool.Broker(memory_limit='16MiB', max_clients=8); print(b.pid, flush=True)"
)


def test_a_broker_ends_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", START_AND_REPORT + "; sys.stdin.read()"],
        env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdin
    assert parent.stdout
    with parent.stdin, parent.stdout:
        pid = int(parent.stdout.readline())
        names = segments_of(pid)
        parent.kill()
        parent.wait()
        eventually(lambda: not is_alive(pid), "the broker's end")
    assert names
    assert not names & segments()


@pytest.mark.parametrize(
    "before",
    [
        *corner(
            "child = os.fork()\n    if child == 0: time.sleep(60)",  # it has inherited what we have open
            "",
            "child = subprocess.Popen(['sleep', '60'], close_fds=False)",
        ),
        "[os.close(int(fd)) for fd in os.listdir('/proc/self/fd')[3:] if os.path.exists(f'/proc/self/fd/{fd}')]",
    ],
)
def test_a_broker_ends_when_its_owner_runs_another_program(before: str, tmp_path: Path) -> None:
    again = f"import shmpool, sys; b = shmpool.Broker(socket={str(tmp_path / 'one.sock')!r}, memory_limit='16MiB');"
    again += "print(b.pid, flush=True); sys.stdin.read()"
    program = (
        "import os, subprocess, sys, time, shmpool\n"
        f"broker = shmpool.Broker(socket={str(tmp_path / 'one.sock')!r}, memory_limit='16MiB')\n"
        "pool = broker.connect(); lease = pool.lease(2 << 20); lease.view[:3] = b'abc'\n"
        "print(broker.pid, flush=True)\n"
        f"if True:\n    {before or 'pass'}\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {again!r}])\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert owner.stdin
        assert owner.stdout
        with owner.stdin, owner.stdout:
            first = int(owner.stdout.readline())
            second = int(owner.stdout.readline())  # it serves the same socket: the first has gone
            assert not is_alive(first)
            assert is_alive(second)
            assert not segments_of(first)
    finally:
        os.killpg(owner.pid, signal.SIGKILL)
        owner.wait()
    eventually(lambda: not is_alive(second), "the second broker's end")


def test_a_broker_stays_though_its_owner_closes_all_descriptors() -> None:
    """As a program does that becomes a daemon, or drops what it inherited."""
    done = script(
        START_AND_REPORT + "\nimport os\n"
        "os.closerange(3, 256)\n"
        "for _ in range(20):\n"
        "    with shmpool.connect(b.address) as pool: pool.stats()\n"
        "print(b.is_running()); b.close()"
    )
    assert done.stdout.split()[1] == "True"


def test_a_broker_for_which_there_are_no_descriptors_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    done = script(
        "import os, resource, shmpool, shmpool.embedded\n"
        f"os.environ['XDG_RUNTIME_DIR'] = {str(tmp_path)!r}\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "taken = {int(fd) for fd in os.listdir('/proc/self/fd')}\n"
        "for spare in range(4):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + spare, hard))\n"
        "    try: shmpool.Broker()\n"
        "    except shmpool.BrokerUnavailable as error: print('ulimit -n' in str(error))\n"
        f"print(os.listdir({str(tmp_path)!r}) or 'none')"
    )
    assert done.stdout.split() == ["True"] * 4 + ["none"]


@pytest.mark.parametrize("ending", corner("", "; raise SystemExit(7)", "; import shmpool.embedded; keep = [b]"))
def test_a_forgotten_broker_ends_at_exit_without_a_word(ending: str) -> None:
    done = script(START_AND_REPORT + ending)
    assert done.stderr == ""
    assert not is_alive(int(done.stdout))


def test_handlers_and_daemon_threads_go_on_with_it_until_the_interpreter_has_ended() -> None:
    """A handler that was registered before the import runs last of all, and threads run beside it."""
    done = script(
        """
import atexit, gc, sys, threading

def last():
    with pool.share([1] * 5000) as shared:
        assert len(pool.get(pool.put(shared.get()))) == 5000
    pool.lease(2 << 20).release()
    busy.clear()
    busy.wait()
    print(pool.stats().pool_id == pool.name, broker.is_running(), flush=True)

atexit.register(last)
import shmpool

def work():
    while True:
        pool.lease(2 << 20).release()
        pool.share(1, "name").release()
        pool.stats()
        busy.set()

busy = threading.Event()
broker = shmpool.Broker(memory_limit="64MiB", max_clients=8, lease_timeout="1s")
pool = broker.connect()
threading.Thread(target=work, daemon=True).start()
busy.wait()
print(broker.pid, broker.address)
"""
    )
    assert done.stderr == ""
    pid, address, *last = done.stdout.split()
    assert last == ["True", "True"]
    assert not is_alive(int(pid))
    assert not os.path.exists(os.path.dirname(address))


@pytest.mark.parametrize(
    "ending",
    [
        "import atexit, os; atexit._run_exitfuncs(); os._exit(0)",  # as those do that fork from what is loaded
        "import gc; gc.disable()",
        "import atexit; atexit.register(b.close)",
    ],
)
def test_however_the_interpreter_ends_it_is_gone_with_its_directory(ending: str) -> None:
    done = script(f"{START_AND_REPORT}; print(b.address, flush=True); {ending}")
    assert done.stderr == ""
    pid, address = done.stdout.split()
    assert not is_alive(int(pid))
    assert not os.path.exists(os.path.dirname(address))


def test_who_waits_for_a_broker_that_this_process_closes_is_told_and_who_asks_later() -> None:
    told = []

    def wait() -> None:
        with pytest.raises(shmpool.BrokerUnavailable, match="closed, by this process") as raised:
            other.lease(8 * 2**20)
        told.append(raised.value)

    broker = shmpool.Broker(**SMALL, lease_timeout="4s")
    with broker.connect() as pool, broker.connect() as other:
        queue = pool.queue("queue")
        held = pool.lease(8 * 2**20)
        waits = threading.Thread(target=wait)
        waits.start()
        eventually(lambda: other._session.link.requests.all(), "a lease that waits")
        broker.close()
        waits.join(PATIENCE)
        assert len(told) == 1
        for ask in (
            lambda: pool.lease(2**20),
            lambda: pool.lease(100_000, timeout=float("inf")),
            lambda: pool.share(bytes(100_000)),
            lambda: pool.find("name", timeout=None),
            lambda: queue.put(bytes(100_000)),
        ):
            with pytest.raises(shmpool.BrokerUnavailable, match="closed, by this process"):
                ask()
        with pytest.raises(shmpool.BrokerUnavailable, match="was closed"):
            broker.connect(timeout=4)
        held.release()


def test_exit_in_a_forked_child_leaves_the_broker() -> None:
    done = script(
        START_AND_REPORT + "; import os\n"
        "if os.fork() == 0: sys.exit()\n"
        "os.wait(); b.connect().close(); print(b.is_running()); b.close()"
    )
    assert done.stderr == ""
    assert done.stdout.split()[1] == "True"


def test_many_threads_close_it_once() -> None:
    broker = shmpool.Broker(**SMALL)
    threads = [threading.Thread(target=broker.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not is_alive(broker.pid)


# --- autostart --------------------------------------------------------------------------------------------

NOWHERE = {"SHMPOOL_SOCKET": "/nowhere/broker.sock"}


def test_autostart_brings_a_broker_where_none_answers_and_tells_the_children() -> None:
    done = script(
        "import os, shmpool, subprocess, sys\n"
        "with shmpool.connect(autostart=True, timeout=1) as pool:\n"
        "    with shmpool.connect() as again: assert again.address == pool.address\n"
        "    child = 'import shmpool; print(shmpool.connect().address)'\n"
        "    shown = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, check=True)\n"
        "    assert shown.stdout.strip() == pool.address == os.environ['SHMPOOL_SOCKET']\n"
        "print(os.path.exists(pool.address), pool.address)",
        **NOWHERE,
    )
    assert done.stderr == ""
    existed, address = done.stdout.split()
    assert existed == "True"
    assert not os.path.exists(address), "it ends with the process"


def test_autostart_gives_all_threads_the_same_broker() -> None:
    done = script(
        "import shmpool, threading\n"
        "found = []\n"
        "def go():\n"
        "    with shmpool.connect(autostart=True) as pool: found.append(pool.address)\n"
        "threads = [threading.Thread(target=go) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(len(found), len(set(found)))",
        **NOWHERE,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["8", "1"]


def test_autostart_replaces_a_broker_that_died() -> None:
    done = script(
        "import os, signal\n"
        "from shmpool.embedded import autostart\n"
        "first = autostart(); os.kill(first.pid, signal.SIGKILL)\n"
        "while first.is_running(): pass\n"
        "second = autostart()\n"
        "assert second.pid != first.pid and second.is_running() and autostart() is second\n"
        "print(os.environ['SHMPOOL_SOCKET'] == second.address, os.path.exists(first.address))"
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["True", "False"]


def test_without_autostart_nobody_is_started() -> None:
    done = script("import shmpool; shmpool.connect(timeout=0.5)", **NOWHERE)
    assert done.returncode == 1
    assert "BrokerUnavailable" in done.stderr
    assert "/nowhere/broker.sock" in done.stderr


# --- what cleans /tmp ------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="needs systemd-tmpfiles")
def test_cleaning_what_is_old_leaves_a_living_broker_s_files(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(tempfile.mkdtemp(prefix="old-", dir="/tmp"))
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
        config = base.with_suffix(".conf")
        config.write_text(f"d {base} - - - mM:1d\n")
        (base / "other").mkdir()
        (base / "other" / "file").touch()
        with shmpool.Broker(**SMALL) as broker:
            everything = sorted(base.rglob("*"))
            assert len(everything) > 5
            for path in everything:
                os.utime(path, (1, 1), follow_symlinks=False)
            subprocess.run(["systemd-tmpfiles", "--clean", str(config)], check=True, timeout=PATIENCE)
            assert [path for path in everything if not path.exists()] == [base / "other", base / "other" / "file"]
            with broker.connect() as pool, pool.lease(100) as lease:
                lease.write(bytes(100))
    finally:
        shutil.rmtree(base)
        config.unlink()


def test_a_broker_renews_its_files(tmp_path: Path) -> None:
    """Others go by age alone."""
    files = RuntimeFiles(str(tmp_path / "run" / "one.sock"), Access())
    assert files.acquire() is None
    with files.listen():
        locks = files.make_lock_files(1)
        everything = [tmp_path / "run", *(tmp_path / "run").iterdir()]
        assert len(everything) == 5
        for path in everything:
            os.utime(path, (1, 1), follow_symlinks=False)
        files.renew()
        assert all(path.lstat().st_mtime > 1 for path in everything)
        locks.close()
    files.remove()
