"""``shmpool demo``: odd files are named and fail nothing, wrong digests and dead processes
fail it, and nothing ever hangs it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ENV, PATIENCE, command, eventually, shmpool_command
from corners import corner

import shmpool
from shmpool.demo import crew, handover, job, tasks
from shmpool.demo.crew import Crew, CrewFailed, Link
from shmpool.demo.files import (
    Corpus,
    Skipped,
    Trouble,
    blocks,
    opened,
    read_into,
    read_whole,
    require_unchanged,
    scan,
)
from shmpool.demo.handover import TIMES
from shmpool.demo.job import POOL, QUEUE, REFERENCE, Job, Report
from shmpool.protocol.sizing import KIB, MIB, SizeCategory, Strategy

LIMIT = 32 * MIB
#: The demo's own process, two readers and two workers.
AT_WORK = 5
#: One for each side of every boundary, and some in between.
SIZES = (1, 100, 32 * KIB - 1, 32 * KIB, 256 * KIB - 1, 256 * KIB, MIB - 1, MIB, 3 * MIB)


@pytest.fixture(autouse=True)
def _members_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a server that has imported what they import, which is most of what a job of spawned ones costs. Those of the
    command are spawned."""
    context = multiprocessing.get_context("forkserver")
    for module in (crew, job):
        monkeypatch.setattr(module, "SPAWN", context)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of regular files, one of each size."""
    root = tmp_path / "tree"
    (root / "below").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        (root / ("below" if number % 2 else ".") / f"file{size}").write_bytes(os.urandom(size))
    return root


def silent(what: str, nbytes: int) -> None:
    pass


def run_job(root: Path, progress: Callable[[str, int], None] = silent, *, compare: bool = False) -> Report:
    return Job(scan(str(root)), LIMIT, 2, 2, progress).run(compare=compare)


def after_the_references(tree: Path, act: Callable[[], None]) -> Callable[[str, int], None]:
    """A progress callback that acts when the files have all been read once, and none for the second time."""
    left = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())

    def progress(part: str, nbytes: int) -> None:
        nonlocal left
        if part == REFERENCE:
            left -= nbytes
            if nbytes and not left:
                act()

    return progress


def once(what: str, act: Callable[[], None]) -> Callable[[str, int], None]:
    """A progress callback that acts when a part of the job reports for the first time."""
    done: list[str] = []

    def progress(part: str, nbytes: int) -> None:
        if part == what and not done:
            done.append(part)
            act()

    return progress


# --- the job -----------------------------------------------------------------------------------------


def test_every_file_is_verified_by_the_strategy_of_its_size(tree: Path) -> None:
    report = run_job(tree, compare=True)
    assert report.ok
    assert report.verified == len(SIZES)
    assert not any(report.troubles.values())
    lines = report.lines
    assert {category: line.files for category, line in lines.items()} == {
        SizeCategory.SMALL: 3,
        SizeCategory.MEDIUM: 2,
        SizeCategory.LARGE: 2,
        SizeCategory.VERY_LARGE: 2,
    }
    assert lines[SizeCategory.SMALL].strategies == lines[SizeCategory.MEDIUM].strategies == {Strategy.POOLED}
    assert lines[SizeCategory.LARGE].strategies == {Strategy.CHUNKED}
    assert lines[SizeCategory.VERY_LARGE].strategies == {Strategy.DIRECT}
    assert report.pool.nbytes == sum(SIZES)
    assert report.queue
    assert (report.queue.files, report.queue.nbytes) == (len(SIZES), sum(SIZES))
    assert report.queue_failure == ""
    assert report.hand_over_failure == ""
    handed = report.hand_over.values()
    assert sum(line.files for line in handed) == len(SIZES)
    assert all(len(ns) == line.files * (TIMES - 1) for line in handed for ns in line.times.values())


def test_a_hand_over_that_fails_leaves_the_rest_of_the_report(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "give", broken_giver)
    report = run_job(tree, compare=True)
    assert report.ok and report.queue
    assert not report.hand_over
    assert report.hand_over_failure == "giver failed: RuntimeError: broken"


def broken_giver(*arguments: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.long
def test_progress_tells_all_bytes_of_each_part(tree: Path) -> None:
    told = {REFERENCE: 0, POOL: 0, QUEUE: 0}

    def progress(what: str, nbytes: int) -> None:
        told[what] += nbytes

    run_job(tree, progress, compare=True)
    assert set(told.values()) == {sum(SIZES)}


@pytest.mark.long
def test_more_than_the_pool_holds_passes_through_it(tmp_path: Path) -> None:
    for number in range(24):
        (tmp_path / f"big{number}").write_bytes(os.urandom(4 * MIB))
    report = run_job(tmp_path)
    assert report.ok
    assert report.verified == 24


@pytest.mark.long
def test_a_file_larger_than_the_pool_is_named(tree: Path) -> None:
    with open(tree / "huge", "wb") as file:
        file.truncate(LIMIT + 1)
    with open(tree / "nearly", "wb") as file:
        file.truncate(LIMIT - 4096)  # the pool's own tables take the rest
    report = run_job(tree)
    assert report.ok
    assert {Path(path).name for path in report.troubles[Trouble.TOO_LARGE]} == {"huge", "nearly"}
    assert report.verified == len(SIZES)


def test_files_that_change_or_vanish_between_the_passes_are_named(tree: Path) -> None:
    changing, vanishing = tree / "changing", tree / "vanishing"
    for path in (changing, vanishing):
        path.write_bytes(bytes(1000))

    def change() -> None:
        changing.write_bytes(os.urandom(1000))
        vanishing.unlink()

    report = run_job(tree, after_the_references(tree, change))
    assert report.ok
    assert report.troubles[Trouble.CHANGED] == [str(changing)]
    assert report.troubles[Trouble.VANISHED] == [str(vanishing)]
    assert report.verified == len(SIZES)


def test_a_file_that_is_always_being_written_never_fails_the_job(tree: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with open(tree / "log", "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(os.urandom(500))
                time.sleep(0.001)

    (tree / "log").write_bytes(b"begin")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = run_job(tree, compare=True)
    finally:
        stop.set()
        writer.join()
    assert report.ok
    assert report.troubles[Trouble.CHANGED] == [str(tree / "log")]
    assert report.verified == len(SIZES)


@pytest.mark.long
def test_an_empty_tree_is_no_failure(tmp_path: Path) -> None:
    report = run_job(tmp_path, compare=True)
    assert report.ok
    assert report.verified == 0
    assert report.queue is None


def test_a_wrong_digest_of_an_unchanged_file_fails_the_job(tree: Path) -> None:
    done = Job(scan(str(tree)), LIMIT, 1, 1, silent)
    done._compute_references()
    done._run_through_pool()
    victim = next(iter(done._digested))
    done._digested[victim] = done._digested[victim]._replace(digests=tasks.digests_of(b"other"))
    done._judge()
    assert not done._report.ok
    assert done._report.mismatched == [done.corpus.paths[victim]]
    assert done._report.verified == len(SIZES) - 1


@pytest.mark.long
def test_a_difference_that_is_the_files_doing_is_a_change(tree: Path) -> None:
    done = Job(scan(str(tree)), LIMIT, 1, 1, silent)
    done._compute_references()
    done._run_through_pool()
    victim = next(iter(done._references))
    torn = done._references[victim]._replace(digests=tasks.digests_of(b"read while it was written"))
    done._references[victim] = torn
    done._judge()
    assert done._report.ok
    assert done._report.troubles[Trouble.CHANGED] == [done.corpus.paths[victim]]


# --- processes that die --------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """So many files that the job is not over when the first results come."""
    content = os.urandom(60_000)
    for number in range(1500):
        (tmp_path / f"{number:04}").write_bytes(content)
    return tmp_path


def kill(name: str) -> Callable[[], None]:
    def act() -> None:
        (victim,) = [child for child in multiprocessing.active_children() if child.name == name]
        victim.kill()

    return act


@pytest.mark.parametrize("name", ["worker 1", pytest.param("reader 2", marks=pytest.mark.long)])
def test_a_killed_process_fails_the_job_and_does_not_hang_it(many: Path, name: str) -> None:
    report = run_job(many, once(POOL, kill(name)))
    assert not report.ok
    assert report.casualties == [f"{name} was killed by signal 9"]
    assert report.verified + len(report.lost) == 1500
    assert report.verified


@pytest.mark.long
def test_killing_every_worker_does_not_hang_the_readers(many: Path) -> None:
    def act() -> None:
        kill("worker 1")()
        kill("worker 2")()

    report = run_job(many, once(POOL, act))
    assert not report.ok
    assert {"worker 1 was killed by signal 9", "worker 2 was killed by signal 9"} <= set(report.casualties)
    assert report.lost


@pytest.mark.long
def test_a_process_killed_in_the_comparison_only_ends_the_comparison(many: Path) -> None:
    report = run_job(many, once(QUEUE, kill("worker 2")), compare=True)
    assert report.ok
    assert report.verified == 1500
    assert report.queue is None
    assert report.queue_failure == "worker 2 was killed by signal 9"


def test_a_broker_that_dies_fails_the_job(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shmpool.embedded import Broker

    started: list[Broker] = []

    class Watched(Broker):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)
            started.append(self)

    monkeypatch.setattr(job, "Broker", Watched)
    with pytest.raises(shmpool.BrokerUnavailable, match="died"):
        run_job(many, once(POOL, lambda: os.kill(started[0].pid, signal.SIGKILL)))


def fail_at_once(link: Link) -> None:
    raise RuntimeError("not today")


def fail_later(link: Link) -> None:
    link.await_go()
    link.put("one")
    raise RuntimeError("no more")


def die_at_once(link: Link) -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("task", "words"), [(fail_at_once, "RuntimeError: not today"), (die_at_once, "ended with status 3")]
)
def test_a_crew_that_cannot_start_says_why(task: Callable[[Link], None], words: str) -> None:
    with Crew() as members:
        members.add("worker 1", task)
        with pytest.raises(CrewFailed, match=words):
            members.start()


@pytest.mark.long
def test_a_member_that_raises_is_a_casualty() -> None:
    with Crew() as members:
        members.add("worker 1", fail_later)
        members.start()
        members.go()
        assert not any(members.results())
        assert members.casualties == ["worker 1 failed: RuntimeError: no more"]


# --- files -----------------------------------------------------------------------------------------------


def test_only_regular_files_are_found(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "file1")
    (tree / "linked-directory").symlink_to(tree / "below")
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    (tree / "below" / "twin").hardlink_to(tree / "file1")
    corpus = scan(str(tree))
    names = {Path(path).name for path in corpus.paths}
    assert names == {f"file{size}" for size in SIZES} | {"twin"}
    assert corpus.nbytes == sum(SIZES) + 1


def test_a_single_file_is_a_corpus(tree: Path) -> None:
    corpus = scan(str(tree / "file1"))
    assert (corpus.paths, corpus.sizes) == ([str(tree / "file1")], [1])


def test_directories_can_be_left_out(tree: Path) -> None:
    assert all("below" not in path for path in scan(str(tree), frozenset({"below"})).paths)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(tree: Path) -> None:
    (tree / "file1").chmod(0)
    (tree / "below").chmod(0)
    try:
        report = run_job(tree)
    finally:
        (tree / "below").chmod(0o700)
    assert report.ok
    assert report.troubles[Trouble.UNREADABLE] == [str(tree / "below"), str(tree / "file1")]


@pytest.mark.long
def test_a_directory_that_cannot_be_listed_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = run_job(tree)
    assert report.ok
    assert report.troubles[Trouble.UNREADABLE] == [str(tree / "below")]
    assert report.verified == (len(SIZES) + 1) // 2


def trouble_of(path: Path) -> Trouble:
    with pytest.raises(Skipped) as caught, opened(str(path)):
        pass
    return caught.value.trouble


def test_each_trouble_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert trouble_of(tmp_path / "missing") is Trouble.VANISHED
    assert trouble_of(tmp_path / "file" / "below") is Trouble.VANISHED
    assert trouble_of(tmp_path / "empty") is Trouble.EMPTY
    assert trouble_of(tmp_path / "link") is Trouble.CHANGED
    assert trouble_of(tmp_path / "fifo") is Trouble.CHANGED
    assert trouble_of(tmp_path) is Trouble.CHANGED

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    assert trouble_of(tmp_path / "file") is Trouble.UNREADABLE


def test_reading_notices_a_file_that_shrank_or_grew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with opened(str(path)) as (fd, identity):
        require_unchanged(fd, identity)
        with pytest.raises(Skipped):
            read_into(fd, memoryview(bytearray(101)))
    with opened(str(path)) as (fd, _), pytest.raises(Skipped):
        read_whole(fd, 101)
    with opened(str(path)) as (fd, identity):
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(Skipped):
            require_unchanged(fd, identity)


def test_reading_in_pieces_gives_the_whole(tmp_path: Path) -> None:
    data = os.urandom(10_000)
    (tmp_path / "file").write_bytes(data)
    with opened(str(tmp_path / "file")) as (fd, _):
        assert b"".join(map(bytes, blocks(fd, memoryview(bytearray(999))))) == data
    with opened(str(tmp_path / "file")) as (fd, _):
        assert read_whole(fd, 10_000) == data


def test_errors_of_the_pool_are_not_taken_for_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(TimeoutError), opened(str(tmp_path / "file")):
        raise TimeoutError


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_shows_names_table_ratio_and_verdict(tree: Path) -> None:
    (tree / "nothing").touch()
    os.mkfifo(tree / "fifo")
    done = shmpool_command("demo", str(tree), "--memory-limit=32MiB", "--readers=1", "--workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "1 file left out, empty:" in done.stdout
    assert str(tree / "nothing") in done.stdout
    for words in ("small", "medium", "large", "very large", "pooled", "chunked", "direct", "MiB/s", "ratio"):
        assert words in done.stdout
    assert f"{len(SIZES)} files verified" in done.stdout


def test_empty_files_are_a_line_and_little_input_is_told_without_speed(tmp_path: Path) -> None:
    for number in range(31):
        (tmp_path / f"empty{number}").touch()
    (tmp_path / "little").write_bytes(b"hi\n")
    done = shmpool_command("demo", str(tmp_path), "--readers=1", "--workers=1")
    assert done.returncode == 0
    assert "31 files left out, empty; --verbose names them\n" in done.stdout
    assert str(tmp_path / "empty") not in done.stdout
    assert "1 file verified" in done.stdout
    assert "Too little" in done.stdout
    assert not re.search(r"ratio|%|MiB/s|seconds|\d [un]s", done.stdout)


@pytest.mark.long
def test_all_that_is_left_out_is_named_when_asked_for(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"empty{number}").touch()
    done = shmpool_command("demo", str(tmp_path), "--verbose")
    assert done.returncode == 0
    assert all(str(tmp_path / f"empty{number}") in done.stdout for number in range(40))
    assert "Nothing to verify" in done.stdout
    assert "verified" not in done.stdout


@pytest.mark.long
def test_names_that_no_terminal_can_show_are_shown_otherwise(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff[red]\n.txt"
    with open(odd, "wb"):
        pass
    with open(os.fsencode(tmp_path) + b"/\xfe.txt", "wb") as file:
        file.write(b"content")
    done = shmpool_command("demo", str(tmp_path), "--verbose", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xff[red]\\n.txt" in done.stdout
    assert "1 file verified" in done.stdout


def test_a_path_that_is_not_there_is_a_usage_error() -> None:
    done = shmpool_command("demo", "/nowhere/at/all")
    assert done.returncode == 2
    assert "/nowhere/at/all" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_memory_limit_that_no_pool_has_is_one_line(tree: Path) -> None:
    done = shmpool_command("demo", str(tree), "--memory-limit", "4KiB")
    assert done.returncode == 2
    assert "memory-limit" in done.stderr and "1 MiB" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "status"), corner((signal.SIGINT, 130), (signal.SIGTERM, 143)))
def test_an_interrupted_demo_leaves_nothing(many: Path, number: signal.Signals, status: int) -> None:
    line = command("demo", str(many))
    with subprocess.Popen(
        line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        eventually(lambda: len(_members_of(process.pid)) >= AT_WORK, "the readers and workers")
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the children, too
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, out + err
    assert "Traceback" not in err


@pytest.mark.long
def test_a_killed_demo_takes_all_its_processes_along(many: Path) -> None:
    line = command("demo", str(many))
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, start_new_session=True) as process:
        eventually(lambda: len(_members_of(process.pid)) >= AT_WORK, "the readers and workers")
        process.kill()
    eventually(lambda: not _members_of(process.pid), "the end of all its processes")


def _members_of(session: int) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = stat[stat.rfind(")") + 2 :].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat)
    return found


@pytest.mark.long
def test_a_terminal_gets_a_progress_bar_and_no_names_of_empty_files(tree: Path) -> None:
    for number in range(40):
        (tree / f"empty{number}").touch()
    pid, terminal = os.forkpty()
    if pid == 0:
        try:
            line = command("demo", str(tree), "--readers=1", "--workers=1")
            os.execve(line[0], line, {**ENV, "TERM": "xterm", "COLUMNS": "120", "LANG": "C.UTF-8"})
        finally:
            os._exit(1)
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(65536):
                shown += piece
        except OSError:
            pass  # EIO is a terminal's end
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert "━" in text
    assert POOL in text
    assert QUEUE in text
    assert "40 files left out, empty; --verbose names them" in text
    assert not re.findall(r"/empty\d+", text)


def test_corpus_counts_its_bytes() -> None:
    assert Corpus(["a", "b"], [1, 2]).nbytes == 3
