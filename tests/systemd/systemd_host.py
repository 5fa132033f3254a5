"""A host of the tests' own: a real systemd as PID 1 in its own namespaces, with the built wheel
installed where its services can read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

PROJECT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
#: Where the installation lies on that host.
OPT = "/opt/shmpool"
PATIENCE = 60.0
#: Nothing of the run that tests: it has names and a socket of its own.
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
NEEDED = ("unshare", "nsenter", "systemctl", "pgrep", "useradd", "runuser")

T = TypeVar("T")


class Host:
    """The booted host, from outside."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.programs: list[subprocess.Popen[str]] = []
        self._enter = ["nsenter", "-t", str(init), "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w"]

    def command(self, *args: str) -> list[str]:
        """The command line that runs *args* there, as root."""
        return [*self._enter, *args]

    def run(self, *args: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a command there to its end; what it printed."""
        done = subprocess.run(
            self.command(*args), input=stdin, env=ENV, capture_output=True, text=True, timeout=PATIENCE
        )
        assert not check or done.returncode == 0, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def main_pid(self) -> int:
        """The broker's, as it sees itself."""
        return int(self.show("shmpoold.service", "MainPID"))

    def python(self, user: str, code: str, *args: str) -> subprocess.Popen[str]:
        """A program of *user*'s; its input and output are pipes."""
        line = self.command("runuser", "-u", user, "--", f"{OPT}/bin/python", "-u", "-c", code, *args)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(line, env=ENV, text=True, **pipes)  # type: ignore[call-overload]
        self.programs.append(process)
        return process

    def eventually(self, look: Callable[[], T], what: str) -> T:
        """What *look* returns once that is true."""
        deadline = time.monotonic() + PATIENCE
        while not (seen := look()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s\n{self.journal()}"
            time.sleep(0.02)
        return seen

    def journal(self) -> str:
        """The service's lines."""
        return self.run("journalctl", "-u", "shmpoold.service", "-o", "cat", "--no-pager", check=False)


def _why_not() -> str | None:
    """Why no such host can be had here."""
    if os.getuid() != 0:
        return "needs root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}"
    if not os.access("/lib/systemd/systemd", os.X_OK):
        return "needs systemd"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--cgroup", "true"], capture_output=True
    )
    return None if done.returncode == 0 else "needs namespaces"


def _interpreter() -> str | None:
    """One of this version that services can run: they see no home folders."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("/usr/bin", "/usr/local/bin"):
        if os.access(f"{folder}/{version}", os.X_OK):
            return f"{folder}/{version}"
    return None


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel in an environment of its own, made to lie at `OPT`; what it depends on is taken
    from the environment that runs the tests."""
    if why := _why_not():
        pytest.skip(f"a real systemd in namespaces {why}")
    if (python := _interpreter()) is None:
        pytest.skip("a real systemd in namespaces needs this Python outside of home folders")
    folder = tmp_path_factory.mktemp("installed")
    (folder / "wheel").mkdir()
    # A copy: a build in the source tree would leave its own folders there.
    source = folder / "source"
    shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns(".*", "tests", "benchmarks", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "-w", str(folder / "wheel"), str(source)],
        env={**os.environ, "CFLAGS": "-O0"}, capture_output=True, text=True,  # half the time of its compilation
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheel").glob("*.whl")
    target = folder / "opt"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = target / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", packages, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    (packages / "dependencies.pth").write_text(f"{OPT}/dependencies\n")
    (target / "dependencies").mkdir()
    (target / "bin").mkdir()
    (target / "bin" / "python").symlink_to(python)
    (target / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python)}\ninclude-system-site-packages = false\n")
    for name in ("shmpool", "shmpoold"):
        script = target / "bin" / name
        script.write_text(f"#!{OPT}/bin/python\nfrom {name}.cli import main\nmain()\n")
        script.chmod(0o755)
    for path in (folder, *folder.parents):
        if path.name.startswith("pytest"):
            path.chmod(0o755)
    return target


@pytest.fixture
def host(installed: Path, tmp_path: Path) -> Iterator[Host]:
    """A booted host, with two users: one is a client (its supplementary group says so), one is not."""
    folder = tmp_path / "root"
    folder.mkdir()
    binds = [str(installed), OPT, sysconfig.get_paths()["purelib"], f"{OPT}/dependencies"]
    process = subprocess.Popen(
        [BOOT, folder, *binds], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        pytest.skip("systemd does not boot in namespaces here")
    made = Host(int(line.split()[1]))
    yield made
    process.stdin.close()
    process.wait(PATIENCE)
    process.stdout.close()
    for program in made.programs:  # what a failed test has left went with its host
        program.communicate(timeout=PATIENCE)
