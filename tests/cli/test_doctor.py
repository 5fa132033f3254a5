"""``shmpool doctor``: each judgement with made-up facts, and the whole on this host."""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_helpers import eventually, is_alive, shmpool_command

import shmpool
from shmpool.cli import checks, kernel
from shmpool.cli.access import Access, check_access, judge_access
from shmpool.cli.checks import Group, Leftover, Login
from shmpool.cli.doctor import render
from shmpool.cli.findings import Finding, Level
from shmpool.protocol.sizing import format_bytes
from shmpool.stats import query
from shmpool.system.memory import MemoryGroup, Pressure, Space, pressure

MIB = 2**20
LIMIT = 256 * MIB


def assert_useful(finding: Finding) -> None:
    assert finding.text
    assert bool(finding.fix) == (finding.level is not Level.OK)


@pytest.mark.parametrize(
    ("space", "level"),
    [
        (None, Level.FAIL),
        (Space(64 * MIB, 64 * MIB), Level.FAIL),
        (Space(LIMIT, LIMIT), Level.OK),
        (Space(2 * LIMIT, LIMIT - 1), Level.WARN),
        (Space(0, 0), Level.OK),
    ],
)
def test_shm_has_to_hold_the_pool(space: Space | None, level: Level) -> None:
    finding = checks.judge_shm(LIMIT, space)
    assert finding.level is level
    assert_useful(finding)
    if space and space.total == 64 * MIB:
        assert "remount,size=512M" in finding.fix


@pytest.mark.parametrize(
    ("groups", "level"),
    [
        ([], Level.OK),
        ([Group("/a", 1024 * MIB, 10 * MIB)], Level.OK),
        ([Group("/a", 300 * MIB, 100 * MIB)], Level.WARN),
        ([Group("/a/b", 1024 * MIB, 10 * MIB), Group("/a", 128 * MIB, 10 * MIB)], Level.FAIL),
    ],
)
def test_the_tightest_cgroup_counts(groups: list[Group], level: Level) -> None:
    finding = checks.judge_cgroups(LIMIT, groups)
    assert finding.level is level
    assert_useful(finding)


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (None, Level.OK),
        (Pressure(0.0, 0.0, 0), Level.OK),
        (Pressure(9.9, 1.0, 10**6), Level.OK),
        (Pressure(10.0, 2.5, 10**9), Level.WARN),
    ],
)
def test_a_host_that_waits_for_memory_is_warned_of(facts: Pressure | None, level: Level) -> None:
    finding = checks.judge_pressure(facts)
    assert finding.level is level
    assert_useful(finding)


def test_the_pressure_is_the_innermost_cgroup_s_that_tells(tmp_path: Path) -> None:
    some = "some avg10=12.50 avg60=3.00 avg300=0.00 total=123456"
    (tmp_path / "a").mkdir()
    (tmp_path / "memory.pressure").write_text(f"{some}\nfull avg10=1.25 avg60=0.00 avg300=0.00 total=99\n")
    groups = [MemoryGroup(str(path), "", "", ()) for path in (tmp_path / "a", tmp_path)]
    assert pressure(groups) == Pressure(12.5, 1.25, 123456)
    (tmp_path / "a" / "memory.pressure").write_text(f"{some}\n")
    assert pressure(groups) == Pressure(12.5, 0.0, 123456)


def feature(*, is_needed: bool) -> kernel.Feature:
    return kernel.Feature("pidfd_open", "5.3", lambda: None, "deaths are not seen", is_needed)


@pytest.mark.parametrize(
    ("is_needed", "why", "level", "words"),
    [
        (True, "Function not implemented", Level.FAIL, "use Linux 5.3 or later"),
        (True, "Operation not permitted", Level.FAIL, "seccomp"),
        (False, "Invalid argument", Level.OK, "deaths are not seen"),
    ],
)
def test_a_kernel_without_a_feature_is_told_with_what_that_means(
    is_needed: bool, why: str, level: Level, words: str
) -> None:
    finding = kernel.judge_kernel("Linux 5.2", [(feature(is_needed=is_needed), why)], ["pidfd_open"])
    assert finding.level is level and words in finding.text + finding.fix and "deaths are not seen" in finding.text
    assert_useful(finding)


def test_each_feature_that_is_needed_is_tried_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.check_kernel().level is Level.OK

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    finding = kernel.check_kernel()
    assert finding.level is Level.FAIL and "no fallocate (Operation not permitted)" in finding.text


def access(**facts: object) -> Access:
    usual: dict[str, object] = {
        "path": "/run/shmpool/broker.sock", "me": "ann", "owner": "shmpool", "group": "media", "mode": 0o660,
    }  # fmt: skip
    return Access(**{**usual, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (access(), Level.OK, "as may the group media"),
        (access(mode=0o600), Level.OK, "ann may use"),
        (access(mode=0o666), Level.WARN, "every user"),
        (access(barred="/run/shmpool", mode=0o750), Level.FAIL, "usermod -aG media ann"),
        (access(barred="/run/shmpool", mode=0o750, is_member=True), Level.FAIL, "newgrp media"),
        (access(barred="/s", mode=0o700), Level.FAIL, "set `group`"),
        (access(barred="/s", mode=0o640, is_member=True, is_member_now=True), Level.FAIL, "chmod g+rwX /s"),
        (access(owner="nobody", is_unmapped=True), Level.WARN, "--userns=host"),
    ],
)
def test_who_is_kept_out_is_told_what_has_to_change(facts: Access, level: Level, words: str) -> None:
    finding = judge_access(facts)
    assert finding.level is level and words in finding.text + finding.fix
    assert_useful(finding)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_folder_on_the_way_that_bars_a_user_is_named() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        (folder / "broker.sock").touch()
        os.chmod(folder / "broker.sock", 0o660)
        os.chown(folder, 0, 12345)
        os.chown(folder / "broker.sock", 0, 12345)
        path = str(folder / "broker.sock")
        for mode, groups, words in ((0o750, (), f"may not use {folder} "), (0o750, (12345,), f"may use {path} ")):
            os.chmod(folder, mode)
            with child_of(65534, groups, check_access, path) as finding:
                assert words in finding.text
    finally:
        shutil.rmtree(folder)


@contextmanager
def child_of(uid: int, groups: tuple[int, ...], act: Callable[[str], Finding], path: str) -> Iterator[Finding]:
    """What a process of another user finds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            os.write(write, repr(tuple(act(path)[1:])).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        raw = pipe.read().decode()
    os.waitpid(pid, 0)
    yield Finding(Level.OK, *ast.literal_eval(raw))


def test_a_terminal_gets_its_lines_indented_and_the_fix_whole() -> None:
    finding = Finding(Level.WARN, "cgroup", "word " * 40, "a command " * 12)
    lines = render(finding, 80).plain.splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 80 and line[16] != " " for line in lines[:-1])
    assert all(line.startswith(" " * 16) for line in lines[1:-1])
    assert lines[-1] == "     fix: " + finding.fix


def login(**facts: object) -> Login:
    usual: dict[str, object] = {"uid": 1000, "user": "ann", "logind_runs": True, "remove_ipc": True, "lingers": False}
    return Login(**{**usual, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (login(), Level.WARN),
        (login(logind_runs=False), Level.OK),
        (login(uid=0, user="root"), Level.OK),
        (login(uid=999), Level.OK),
        (login(remove_ipc=False), Level.OK),
        (login(lingers=True), Level.OK),
    ],
)
def test_logind_is_a_danger_to_users_who_log_in(facts: Login, level: Level) -> None:
    finding = checks.judge_remove_ipc(facts)
    assert finding.level is level
    assert_useful(finding)


@pytest.mark.parametrize(
    ("texts", "removes"),
    [
        ([], True),
        (["[Login]\n#RemoveIPC=no\n"], True),
        (["[Login]\nRemoveIPC=no\n"], False),
        (["[Login]\nRemoveIPC = off\n", "[Login]\nRemoveIPC=yes\n"], True),
        (["RemoveIPC=yes", "RemoveIPC=0"], False),
    ],
)
def test_the_last_word_on_remove_ipc_counts(texts: list[str], removes: bool) -> None:
    assert checks.removes_ipc(texts) is removes


@pytest.mark.parametrize(
    ("name", "has_gil", "level"),
    [("cpython", True, Level.OK), ("cpython", False, Level.FAIL), ("pypy", True, Level.FAIL)],
)
def test_only_cpython_with_the_gil_will_do(name: str, has_gil: bool, level: Level) -> None:
    finding = checks.judge_python(name, "3.13.0", has_gil=has_gil)
    assert finding.level is level
    assert_useful(finding)


def test_the_compiled_part_is_told_of_and_why_it_is_not_there() -> None:
    compiled = checks.judge_python("cpython", "3.13.0", has_gil=True)
    plain = checks.judge_python("cpython", "3.13.0", has_gil=True, why_plain="there was no C compiler (cc)")
    assert (compiled.level, plain.level) == (Level.OK, Level.OK), "it is optional"
    assert "hot paths compiled" in compiled.text
    assert "hot paths in plain Python: there was no C compiler (cc)" in plain.text


@pytest.mark.parametrize(
    ("soft", "level"),
    [(64, Level.FAIL), (256, Level.WARN), (1024, Level.OK), (resource.RLIM_INFINITY, Level.OK)],
)
def test_open_files(soft: int, level: Level) -> None:
    finding = checks.judge_descriptors(soft)
    assert finding.level is level
    assert_useful(finding)


def test_leftovers_are_named_and_only_warned_of() -> None:
    assert checks.judge_leftovers(2, []).level is Level.OK
    finding = checks.judge_leftovers(2, [Leftover(255, 10, 5 * MIB)])
    assert finding.level is Level.WARN
    assert "00000000000000ff" in finding.text
    assert "doctor --clean" in finding.fix


def test_a_living_brokers_pool_is_no_leftover_and_a_killed_ones_is() -> None:
    with shmpool.Broker(memory_limit="16MiB", max_clients=8) as broker:
        pool_id = int(query(broker.address).pool_id, 16)
        assert checks.has_broker(pool_id)
        os.kill(broker.pid, signal.SIGKILL)
        eventually(lambda: not is_alive(broker.pid), "the broker's death")
        assert not checks.has_broker(pool_id)
        finding = checks.check_leftovers()
        assert finding.level is Level.WARN
        assert f"{pool_id:016x}" in finding.text
    assert not checks.has_broker(pool_id)


def test_a_broker_that_answers_is_well(broker: shmpool.Broker) -> None:
    assert checks.check_broker(broker.address).level is Level.OK


def test_no_broker_is_no_failure() -> None:
    assert checks.check_broker("/nowhere/broker.sock").level is Level.OK


def test_a_socket_without_a_broker_is_a_failure(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "broker.sock")
    open(path, "w").close()
    finding = checks.check_broker(path)
    assert finding.level is Level.FAIL
    assert_useful(finding)


def test_the_whole_runs_here() -> None:
    done = shmpool_command("doctor", "--memory-limit", "16MiB")
    assert done.stderr == ""
    subjects = (
        "kernel",
        "python",
        "/dev/shm",
        "cgroup",
        "pressure",
        "RemoveIPC",
        "leftovers",
        "open files",
        "access",
        "broker",
    )
    for subject in subjects:
        assert subject in done.stdout
    assert (done.returncode == 1) == any(line.startswith("fail") for line in done.stdout.splitlines())


def test_a_limit_beyond_this_host_fails_and_says_the_fix() -> None:
    done = shmpool_command("doctor", "--memory-limit", "1000TiB")
    assert done.returncode == 1
    assert "fix: mount -o remount" in done.stdout


@pytest.mark.parametrize("text", ["", "x", "12 parsecs", "-1", "1e9"])
def test_a_size_that_is_none_is_a_usage_error(text: str) -> None:
    done = shmpool_command("doctor", f"--memory-limit={text}")
    assert done.returncode == 2
    assert "256MiB" in done.stderr


# --- for machines, and for tidying up -----------------------------------------------------------


def test_json_has_each_finding_with_its_fix(broker: shmpool.Broker) -> None:
    done = shmpool_command("doctor", "--json", SHMPOOL_SOCKET=broker.address)
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert {"kernel", "/dev/shm", "cgroup", "huge pages", "leftovers", "broker"} <= set(findings)
    assert all(set(finding) == {"level", "subject", "text", "fix"} for finding in findings.values())
    limit = format_bytes(query(broker.address).memory["limit"])
    assert f"for a memory_limit of {limit}" in findings["/dev/shm"]["text"]  # of the broker that answers


def test_clean_removes_what_dead_brokers_left_and_a_dry_run_says_so_first(broker: shmpool.Broker) -> None:
    other = shmpool.Broker(memory_limit="8MiB")
    pool_id = query(other.address).pool_id
    os.kill(other.pid, signal.SIGKILL)
    segments = [name for name in os.listdir("/dev/shm") if pool_id in name]
    promised = shmpool_command("doctor", "--clean", "--dry-run", SHMPOOL_SOCKET=other.address)
    assert f"pool {pool_id}: would remove {len(segments)} segments" in promised.stdout
    assert segments == [name for name in os.listdir("/dev/shm") if pool_id in name]
    done = shmpool_command("doctor", "--clean", SHMPOOL_SOCKET=other.address)
    assert done.returncode == 0 and f"pool {pool_id}: removed {len(segments)} segments" in done.stdout
    assert query(broker.address).memory["held"]  # the living one's stay
    other.close()


@pytest.mark.parametrize(
    ("options", "enabled", "words"),
    [
        (["rw", "huge=within_size"], "never", "has them (huge=within_size"),
        (["rw"], "force", "has them"),
        (["rw", "huge=always"], "deny", "remount,huge=within_size"),
        (["rw"], "never", "1.3 to 1.6 times"),
        (["rw"], "", "this kernel has none"),
    ],
)
def test_huge_pages_are_told_with_what_they_give(options: list[str], enabled: str, words: str) -> None:
    finding = checks.judge_huge_pages(options, enabled)
    assert finding.level is Level.OK and words in finding.text + finding.fix
