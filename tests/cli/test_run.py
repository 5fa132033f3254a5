"""``shmpool run -- CMD``: the command's own fate comes through, the broker's ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import ENV, PATIENCE, command, eventually, is_alive, segments, shmpool_command
from corners import corner

from shmpool.cli.run import parse_setting
from shmpool.errors import ConfigError
from shmpool.stats import query

SMALL = ("--memory-limit", "16MiB", "--set", "max_clients=8")
USE_POOL = (
    "import os, shmpool\n"
    "with shmpool.connect() as pool, pool.lease(5) as lease:\n"
    "    lease.write(b'hello')\n"
    "    print(os.environ['SHMPOOL_SOCKET'], pool.stats().pool_id)"
)


def run(*cmd: str, options: tuple[str, ...] = SMALL) -> subprocess.CompletedProcess[str]:
    return shmpool_command("run", *options, "--", *cmd)


def test_the_command_finds_the_broker_which_is_gone_afterwards() -> None:
    done = run(sys.executable, "-c", USE_POOL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    address, pool_id = done.stdout.split()
    assert not os.path.exists(address)
    assert not [name for name in segments() if pool_id in name]


@pytest.mark.parametrize(
    ("cmd", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        *corner(
            (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
            (["true"], 0),
            (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        ),
    ],
)
def test_the_exit_status_is_the_commands(cmd: list[str], status: int) -> None:
    assert run(*cmd).returncode == status


def test_options_behind_the_command_are_the_commands() -> None:
    done = shmpool_command("run", *SMALL, "echo", "--set", "-h", "--memory-limit")
    assert done.stdout == "--set -h --memory-limit\n"


def test_arguments_and_standard_input_pass_through() -> None:
    line = command("run", *SMALL, "--", "sh", "-c", 'cat; echo "$0" "$1"', "a b", "--", "c")
    done = subprocess.run(line, env=ENV, input="text;", capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "text;a b --\n"


def test_a_command_that_cannot_run_is_one_line(tmp_path: Path) -> None:
    missing, no_program = run("/nowhere/program"), run(str(tmp_path))
    assert missing.returncode == 127
    assert missing.stderr == "shmpool: cannot run /nowhere/program: No such file or directory\n"
    assert no_program.returncode == 126
    assert no_program.stderr.count("\n") == 1


def test_a_wrong_setting_is_one_line_and_no_command_runs() -> None:
    done = run("echo", "ran", options=("--set", "memory_limt=1"))
    assert done.returncode == 2
    assert "ran" not in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("shmpool: memory_limt is no setting")


def test_no_command_is_a_usage_error() -> None:
    done = shmpool_command("run")
    assert done.returncode == 2
    assert "CMD" in done.stderr


#: A signal comes as soon as the first line was read, in the middle of that line's print: one in the handler would be an
#: error, as the buffer is in use.
TELL_SIGNAL = (
    "import os, signal, sys, time\n"
    "def told(number, frame): os.write(1, signal.Signals(number).name.encode() + b'\\n'); sys.exit(5)\n"
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1): signal.signal(number, told)\n"
    "print(os.getpid(), flush=True)\n"
    "while True: time.sleep(1)"
)


@pytest.mark.parametrize("number", corner(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
def test_signals_are_passed_on_and_waited_for(number: signal.Signals) -> None:
    line = command("run", *SMALL, "--", sys.executable, "-c", TELL_SIGNAL)
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        inner = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stdout.readline().strip() == number.name
        assert process.wait(PATIENCE) == 5
    assert not is_alive(inner)


def test_ctrl_c_of_a_terminal_reaches_the_command_once() -> None:
    """The terminal signals the whole group; passed on as well, it would come twice."""
    count = (
        "import os, signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: (seen.append(1), os.write(1, b'interrupted\\n')))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b'%d times\\n' % len(seen)), sys.exit()))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"  # a pause may begin behind the last look for signals, and then sees none
    )
    line = command("run", *SMALL, "--", sys.executable, "-c", count)
    pid, terminal = os.forkpty()
    if pid == 0:
        try:
            os.execve(line[0], line, ENV)
        finally:
            os._exit(1)
    with open(terminal, "r+b", buffering=0) as screen:
        shown = b""
        while b"ready" not in shown:
            shown += screen.read(1024)
        screen.write(b"\x03")
        while b"interrupted" not in shown:
            shown += screen.read(1024)
        os.kill(pid, signal.SIGUSR1)  # passed on after what came before it
        while b"times" not in shown:
            shown += screen.read(1024)
        # Within: a terminal that is closed hangs up on the command, which is another thing.
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"1 times" in shown


@pytest.mark.parametrize(
    ("script", "status"),
    corner(("trap 'exit 7' HUP; echo ready; while :; do sleep 0.05; done", 7), ("echo ready; exec sleep 100", 129)),
)
def test_a_terminal_that_hangs_up_is_told_to_the_command(script: str, status: int) -> None:
    """The kernel tells the session's leader alone, and the leader is ours."""
    line = command("run", *SMALL, "--", "sh", "-c", script)
    pid, terminal = os.forkpty()
    if pid == 0:
        try:
            os.execve(line[0], line, ENV)
        finally:
            os._exit(1)
    with open(terminal, "r+b", buffering=0) as screen:
        shown = b""
        while b"ready" not in shown:
            shown += screen.read(1024)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


def test_a_killed_run_takes_its_broker_along() -> None:
    line = command("run", *SMALL, "--", "sh", "-c", 'echo "$SHMPOOL_SOCKET"; exec sleep 60')
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        pool_id = query(address).pool_id
        os.killpg(process.pid, signal.SIGKILL)
    eventually(lambda: not os.path.exists(address), "the broker's end")
    eventually(lambda: not [name for name in segments() if pool_id in name], "the segments' end")
    eventually(lambda: not os.path.exists(os.path.dirname(address)), "its directory's end")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("memory_limit=64MiB", ("memory_limit", "64MiB")),
        ("max_clients=7", ("max_clients", 7)),
        ("lease_timeout = 1.5", ("lease_timeout", 1.5)),
        ('pooled_sizes=["4KiB", 8192]', ("pooled_sizes", ["4KiB", 8192])),
        ("log_level=", ("log_level", "")),
        ("group=a=b", ("group", "a=b")),
    ],
)
def test_settings_are_read_as_toml_or_text(text: str, setting: tuple[str, object]) -> None:
    assert parse_setting(text) == setting


@pytest.mark.parametrize("text", ["memory_limit", "=5", ""])
def test_settings_without_key_or_value_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_setting(text)
