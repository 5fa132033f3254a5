from __future__ import annotations

import builtins
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import mock_open, patch

import pytest
from shell_helpers import ENV

from shmpool.system import processes
from shmpool.system.locks import ByteLocks, FileLock


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "locks").touch()
    return str(tmp_path / "locks")


def test_byte_is_one_opener_s_at_a_time(path: str) -> None:
    with ByteLocks(path) as mine, ByteLocks(path) as other:
        assert mine.try_lock(7)
        assert not other.try_lock(7)
        assert other.try_lock(8)
        mine.unlock(7)
        assert other.try_lock(7)


def test_closing_frees_all_bytes(path: str) -> None:
    other = ByteLocks(path)
    mine = ByteLocks(path)
    assert mine.try_lock(1 << 23)
    mine.close()
    mine.close()
    assert other.try_lock(1 << 23)
    other.close()


def test_dead_holder_s_byte_is_free(path: str) -> None:
    code = (
        "import os; from shmpool.system.locks import ByteLocks\n"
        f"print(ByteLocks({path!r}).try_lock(3), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.stdout == "True\n"
    with ByteLocks(path) as locks:
        assert locks.try_lock(3)


def test_file_lock_is_exclusive_and_tells_who_holds_it(tmp_path: Path) -> None:
    first, second = FileLock(str(tmp_path / "l")), FileLock(str(tmp_path / "l"))
    assert first.try_acquire()
    first.write("me")
    assert not second.try_acquire()
    assert second.read() == "me"
    first.release()
    assert second.try_acquire()
    second.write("x")
    assert first.read() == "x"
    second.release(unlink=True)
    assert os.listdir(tmp_path) == []


def test_lock_on_an_unlinked_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    real = fcntl.flock
    unlinked: list[Path] = []

    def flock_after_an_unlink(fd: int, operation: int) -> None:
        if not unlinked:  # the last holder removes the file between our open and our lock
            unlinked.append(path)
            os.unlink(path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_an_unlink)
    lock, late = FileLock(str(path)), FileLock(str(path))
    assert lock.try_acquire()
    assert not late.try_acquire()
    lock.release(unlink=True)


def test_text_is_written_only_while_held(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "l"))
    with pytest.raises(ValueError, match="not held"):
        lock.write("x")
    assert lock.read() == ""


def test_start_time_names_a_process_for_good() -> None:
    began = processes.start_time(os.getpid())
    assert began is not None
    assert processes.is_same_process(os.getpid(), began)
    assert not processes.is_same_process(os.getpid(), began + 1)
    child = subprocess.Popen(["true"])
    child.wait()
    assert processes.start_time(child.pid) is None
    assert processes.command(child.pid) == ""


def test_name_with_parentheses_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    odd = tmp_path / ") S 1 (2 3) "
    os.symlink("/bin/cat", odd)
    plain = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    child = subprocess.Popen([str(odd)], stdin=subprocess.PIPE)
    began, before = processes.start_time(child.pid), processes.start_time(plain.pid)
    for process in (child, plain):
        process.communicate()
    assert began is not None
    assert before is not None
    assert 0 <= began - before < 1000


def test_command_is_short_and_printable() -> None:
    child = subprocess.Popen(["cat", "-", "\x1b[31m" + "x" * 200], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = processes.command(child.pid)
    child.communicate()
    assert len(text) <= 64
    assert text.isprintable()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/usr/bin/python3.11", "-u", "/srv/very/long/reader.py", "--fast", "/data"], "reader.py --fast /data"),
        (["/usr/bin/python3", "-X", "dev", "-W", "error", "-m", "pkg.worker", "4"], "pkg.worker 4"),
        (["python", "-c", "import x\nx.run()"], "python -c import x x.run()"),
        (["/usr/bin/python3"], "python3"),
        (["/opt/tools/my tool", "/data/in"], "my tool /data/in"),
        (["nginx: master process"], "nginx: master process"),
    ],
)
def test_command_names_the_script_and_not_its_interpreter(words: list[str], shown: str) -> None:
    with patch.object(builtins, "open", mock_open(read_data="\0".join(words).encode() + b"\0")):
        assert processes.command(1) == shown


CREW = """
import multiprocessing, os, sys
from shmpool.system.processes import command

def tell(queue):
    queue.put(command(os.getpid()))

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=tell, args=(queue,))
        process.start()
        print(queue.get(), flush=True)
        process.join()
"""


def test_a_worker_of_multiprocessing_is_named_after_its_program(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(CREW)
    done = subprocess.run([sys.executable, str(program), "--fast"], env=ENV, capture_output=True, text=True, check=True)
    assert done.stdout == "worker of train.py --fast\n" * 2
