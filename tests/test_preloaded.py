"""A process that is forked does what a new interpreter would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

SAYS = """
import json, os, resource, signal, sys, warnings
warnings.simplefilter("default", ImportWarning)
print(json.dumps({
    "arguments": sys.argv, "stdin": sys.stdin.read(), "directory": os.getcwd(), "parent": os.getppid(),
    "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "word": os.environ.get("A_WORD"), "home": os.environ.get("HOME"), "main": __name__, "path": sys.path[0],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "handlers": [repr(signal.getsignal(number)).split(" at ")[0] for number in (signal.SIGINT, signal.SIGTERM)],
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    "filters": [str(one[:3]) for one in warnings.filters if "shmpool" not in str(one[1])][:3],
    "leads": os.getsid(0) == os.getpid(), "is_in_development_mode": sys.flags.dev_mode,
}))
print("aside", file=sys.stderr)
"""


def test_it_has_all_that_a_new_interpreter_has(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    script = tmp_path / "says.py"
    script.write_text(SAYS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        for line in (
            ["-W", "error", "-c", SAYS, "one", "--two"],
            ["-P", "-c", SAYS],
            ["-X", "dev", "-c", SAYS],
            ["-W", "error", str(script), "x"],
        ):
            answers = []
            for start in (subprocess.Popen, preloaded.Popen):
                process = start(
                    [sys.executable, *line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True, cwd=tmp_path, env={**os.environ, "A_WORD": "ünïcode"}, pass_fds=[writing],
                    start_new_session=True,
                )  # fmt: skip
                assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None  # our child
                answers.append((process.communicate("what is said"), process.returncode))
            assert answers[1] == answers[0]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "raise SystemExit('words')", "1 / 0", "import os; os.kill(os.getpid(), 9)",
             "import atexit; atexit.register(print, 'at the end')", "raise KeyboardInterrupt",
             "import threading, time; threading.Thread(target=lambda: (time.sleep(0.01), print('a thread'))).start()"],
)  # fmt: skip
def test_it_ends_as_a_new_interpreter_does(code: str) -> None:
    line = [sys.executable, "-c", code]
    new = subprocess.run(line, capture_output=True, text=True)
    forked = preloaded.run(line, timeout=60)
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


@pytest.mark.fresh
def test_who_asks_for_a_new_interpreter_gets_one() -> None:
    code = "import sys; print('shmpoold.core' in sys.modules)"
    assert preloaded.run([sys.executable, "-c", code], timeout=60).stdout == "False\n"


def test_who_says_nothing_gets_one_that_has_imported_it_all() -> None:
    code = "import sys; print('shmpoold.core' in sys.modules)"
    assert preloaded.run([sys.executable, "-c", code], timeout=60).stdout == "True\n"


@pytest.mark.parametrize("mode", [[], ["-X", "dev"]], ids=["usual", "development"])
def test_it_is_plain_or_compiled_as_its_environment_says(mode: list[str]) -> None:
    line = [sys.executable, *mode, "-c", "import shmpool; print(shmpool.__compiled__)"]
    for pure in ("1", "", "0"):
        environment = {**os.environ, "SHMPOOL_PURE": pure}
        new = subprocess.run(line, capture_output=True, text=True, env=environment).stdout
        assert preloaded.run(line, timeout=60, env=environment).stdout == new
