"""``shmpool run -- CMD``: a private broker for one command, gone with it.

The command stays in the terminal's foreground and gets its keys itself: a signal that the
kernel sent to the whole group is not passed on a second time, one that somebody sent to
this process is.
"""

from __future__ import annotations

import os
import signal
import sys
import tomllib
from typing import Any, Final

import click

from ..addresses import ENVIRONMENT
from ..embedded import Broker
from ..errors import ConfigError

_FORWARDED: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
)
#: siginfo's si_code for a signal that a terminal sent, to this process and to the command.
_SI_KERNEL: Final = 0x80
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


@click.command(
    "run", short_help="Run a command with a private broker.", context_settings={"allow_interspersed_args": False}
)
@click.option("--memory-limit", metavar="SIZE", help='The most memory the pool may hold, such as "256MiB".')
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting; may be repeated.")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
def command(memory_limit: str | None, assignments: tuple[str, ...], cmd: tuple[str, ...]) -> None:
    """Run CMD with a private broker, which ends with it.

    CMD finds it by SHMPOOL_SOCKET. The exit status is CMD's, or 128 + the number of the
    signal that ended it.
    """
    settings = dict(map(parse_setting, assignments))
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    with Broker(**settings) as broker:
        status = run(list(cmd), {**os.environ, ENVIRONMENT: broker.address})
    sys.exit(status)


def parse_setting(assignment: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is read as TOML, or else is text as it stands."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE, not {assignment!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def run(cmd: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end, passing signals on, and return its exit status. For the
    main thread; other children of this process are left alone."""
    awaited = _FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        try:
            pid = os.posix_spawnp(cmd[0], cmd, environment, setsigmask=before, setsigdef=[signal.SIGPIPE])
        except OSError as error:
            click.echo(f"shmpool: cannot run {cmd[0]}: {error.strerror}", err=True)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        return _wait(pid, awaited)
    finally:
        # What is still pending was meant for the command, which is gone.
        while signal.sigtimedwait(awaited, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(pid: int, awaited: frozenset[signal.Signals]) -> int:
    while True:
        info = signal.sigwaitinfo(awaited)
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif info.si_code != _SI_KERNEL or _is_told_alone(info.si_signo):
            os.kill(pid, info.si_signo)


def _is_told_alone(number: int) -> bool:
    """Whether a terminal tells its session's leader alone: that it has hung up. All else it tells the
    whole group in the foreground."""
    return number == signal.SIGHUP and os.getsid(0) == os.getpid()
