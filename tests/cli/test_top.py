"""``shmpool top``: what is shown for which keys, and the real thing in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest
from cli_helpers import ENV, PATIENCE, command, shmpool_command
from rich.console import Console

import shmpool
from shmpool.cli.top import Screen

WIDTH, HEIGHT = 80, 24


def shown(screen: Screen, height: int = HEIGHT) -> list[str]:
    out = Console(width=WIDTH, height=height, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    with contextlib.closing(out.file):
        out.print(screen.render(height))
        return out.export_text().splitlines()


@pytest.fixture
def screen(broker: shmpool.Broker, pool: shmpool.Pool) -> Screen:
    made = Screen()
    with pool.lease(100_000), pool.lease(300_000):
        made.look(broker.address)
        made.press("l")
        made.look(broker.address)
    made.press("p")
    return made


def test_a_letter_shows_its_table_within_the_terminal(screen: Screen) -> None:
    pages = {}
    for key, word in (("t", "pooled 128 KiB"), ("p", str(os.getpid())), ("l", "leased")):
        assert screen.press(key)
        pages[key] = shown(screen)
        assert any(word in line for line in pages[key])
        assert max(map(len, pages[key])) <= WIDTH and len(pages[key]) <= HEIGHT
    assert len({tuple(page) for page in pages.values()}) == 3


def test_a_small_terminal_shows_the_first_rows_and_how_many_more(screen: Screen) -> None:
    screen.press("t")
    page = shown(screen, 15)
    assert len(page) <= 15 and any(line.startswith("and ") and line.endswith(" more") for line in page)


def test_rows_are_sorted_by_the_marked_column_and_turned_round(screen: Screen) -> None:
    screen.press("t")

    def order() -> list[str]:
        lines = shown(screen)
        kinds = ("pooled", "chunk", "direct")
        return [line.split("  ")[0].strip() for line in lines if line.strip().startswith(kinds)]

    by_name = order()
    screen.press("r")
    assert order() == by_name[::-1]
    screen.press("r")
    for _ in range(5):  # to the column of what is leased
        screen.press("s")
    assert any("*leased" in line for line in shown(screen))
    assert order()[:2] in (["chunk 64 KiB", "pooled 128 KiB"], ["chunk 128 KiB", "pooled 128 KiB"])
    screen.press("S")
    assert any("*idle" in line for line in shown(screen))
    assert not screen.press("q")


def test_a_broker_that_goes_is_said_and_looked_for_again(screen: Screen) -> None:
    screen.look("/nowhere/broker.sock")
    page = " ".join(shown(screen))
    assert "no answer" in page and "/nowhere/broker.sock" in page and "Processes" in page


def test_in_a_terminal_it_draws_and_ends_with_q(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    before = termios.tcgetattr(slave)
    line = command("top", "--socket", broker.address)
    env = {**ENV, "TERM": "xterm", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
    with subprocess.Popen(line, env=env, stdin=slave, stdout=slave, stderr=slave) as process:
        seen = b""
        deadline = time.monotonic() + PATIENCE
        while b"Processes" not in seen or str(os.getpid()).encode() not in seen:
            assert select.select([master], [], [], deadline - time.monotonic())[0], seen
            seen += os.read(master, 1 << 16)
        os.write(master, b"q")
        while process.poll() is None:
            if select.select([master], [], [], 0.05)[0]:
                seen += os.read(master, 1 << 16)
            assert time.monotonic() < deadline
    assert process.returncode == 0 and b"Traceback" not in seen
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_without_a_terminal_it_says_what_prints_to_pipes(broker: shmpool.Broker) -> None:
    done = shmpool_command("top", "--socket", broker.address)
    assert done.returncode == 2 and "stats --watch" in done.stderr
