"""Log lines: text, with the journal's priorities, as JSON; and no more than anybody reads."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from shmpoold.shell import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_say_when_who_and_what() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logging.getLogger("shmpoold.test").warning("a pipe of %d\nlines", 2)
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("shmpoold.test").exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "shmpoold.test", "a pipe of 2\nlines")
    assert first["pid"] == os.getpid() and first["time"].endswith("+00:00")
    assert "KeyError: 'x'" in second["exception"]


def test_the_journal_gets_priorities_of_its_own_stream_only() -> None:
    line = "from shmpoold.shell import logs; import logging, sys; logs.configure('info', 'text', sys.stderr)"
    line += "; logging.error('one\\ntwo'); logging.info('three')"
    read, write = os.pipe()
    with open(read) as pipe, open(write, "w") as end:
        status = os.fstat(end.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([sys.executable, "-c", line], env=env, stderr=end, check=True)
        end.close()
        assert pipe.read() == "<3>one\n<3>two\n<6>three\n"
    other = subprocess.run([sys.executable, "-c", line], env=env, capture_output=True, text=True, check=True)
    assert "ERROR: one" in other.stderr and "<3>" not in other.stderr


def test_too_many_lines_are_left_out_and_counted_and_errors_are_not() -> None:
    now = [0.0]
    stream = io.StringIO()
    handler = logs.BoundedHandler(stream, lambda: now[0])
    handler.setFormatter(logging.Formatter("%(message)s"))

    def say(text: str, level: int = logging.INFO) -> None:
        handler.handle(logging.LogRecord("x", level, "", 0, text, (), None))

    for number in range(logs.BURST + 50):
        say(f"line {number}")
    assert len(stream.getvalue().splitlines()) == logs.BURST
    say("an error", logging.ERROR)
    assert stream.getvalue().splitlines()[-2:] == ["50 log lines were left out: more than one each 0.1 s", "an error"]
    say("still too many")
    now[0] += 10 * logs.SECONDS_A_LINE
    say("later")
    assert stream.getvalue().splitlines()[-2:] == ["1 log lines were left out: more than one each 0.1 s", "later"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_daemon_logs_in_the_form_that_it_is_told(start_broker: Callable[..., object], form: str) -> None:
    broker = start_broker("--log-format", form)
    log = broker.signal(signal.SIGTERM)  # type: ignore[attr-defined]
    serving = next(line for line in log.splitlines() if "serving" in line)
    assert (json.loads(serving)["level"] == "info") if form == "json" else " INFO: serving" in serving
