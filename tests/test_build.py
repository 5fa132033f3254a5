"""The package is built with its compiled part where a compiler is, and without it elsewhere: never is that an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from corners import corner

pytest.importorskip("hatchling", reason="the build backend is not installed")

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(*sys.argv[2:]), flush=True)"
HIDE_CYTHON = "import sys; sys.modules['Cython'] = None; "
#: What makes a machine without a compiler of this one.
NO_COMPILER = {"CC": "no-such-compiler"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built, without what this checkout has built before."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("shmpool", "daemon", "docs"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "twin.c", "plain.txt")
        )
    return copy


def build(where: Path, hook: str, *arguments: str, hidden: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a hook of the build backend in a process of its own, as pip does."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("SHMPOOL_", "CC", "CFLAGS"))}
    return subprocess.run(
        [sys.executable, "-c", hidden + BUILD, hook, *arguments],
        cwd=where, env={**without, **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def built(where: Path, hook: str, into: Path, hidden: str = "", **env: str) -> Path:
    done = build(where, hook, str(into), hidden=hidden, **env)
    assert done.returncode == 0, done.stderr
    return into / done.stdout.split()[-1]


def reason_in(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".c", ".pyx", ".pxi", ".h"))]
        return archive.read("shmpool/_fast/plain.txt").decode().strip()


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (NO_COMPILER, "there was no C compiler (no-such-compiler) when it was installed"),
        *corner(
            ({"CC": "/bin/false"}, "its compilation failed when it was installed: /bin/false ended with status 1"),
            ({"CC": "/bin/true"}, "its compilation failed when it was installed: /bin/true made nothing"),
            ({"SHMPOOL_PURE": "1"}, "it was installed with SHMPOOL_PURE=1"),
        ),
    ],
    ids=str,
)
def test_without_a_compiler_the_wheel_is_plain_and_says_why(
    checkout: Path, tmp_path: Path, env: dict[str, str], reason: str
) -> None:
    done = build(checkout, "build_wheel", str(tmp_path), **env)
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / done.stdout.split()[-1]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert reason_in(wheel) == reason
    assert ("built without its compiled part" in done.stderr + done.stdout) == ("CC" in env)
    asked = build(checkout, "get_requires_for_build_wheel", **env)
    assert "cython" not in asked.stdout, "pip would install it for nothing, or fail where there is none"


def test_without_cython_the_wheel_is_plain_and_says_why(checkout: Path, tmp_path: Path) -> None:
    wheel = built(checkout, "build_wheel", tmp_path, hidden=HIDE_CYTHON)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Cython was not there" in reason_in(wheel)


def test_who_insists_on_the_compiled_part_is_told_that_it_cannot_be_built(checkout: Path, tmp_path: Path) -> None:
    """So that wheels for a machine are never plain unseen."""
    done = build(checkout, "build_wheel", str(tmp_path), SHMPOOL_COMPILED="1", **NO_COMPILER)
    assert done.returncode != 0
    assert "SHMPOOL_COMPILED=1, and the compiled part cannot be built: there was no C compiler" in done.stderr
    assert not list(tmp_path.iterdir())


def test_editable_installation_whose_folder_cannot_be_written_is_made_and_plain(checkout: Path, tmp_path: Path) -> None:
    in_the_way = checkout / "shmpool/_fast/plain.txt"
    in_the_way.mkdir()
    try:
        done = build(checkout, "build_editable", str(tmp_path), **NO_COMPILER)
    finally:
        in_the_way.rmdir()
    assert done.returncode == 0, done.stderr
    assert "nothing can be put beside the sources" in done.stderr + done.stdout
    assert not list((checkout / "shmpool/_fast").glob("plain.txt*"))


def test_editable_installation_leaves_no_compiled_part_of_an_earlier_one(checkout: Path, tmp_path: Path) -> None:
    folder = checkout / "shmpool/_fast"
    suffix = subprocess.check_output(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"], text=True
    ).strip()
    (folder / f"twin{suffix}").write_bytes(b"of other sources")
    built(checkout, "build_editable", tmp_path, **NO_COMPILER)
    assert not list(folder.glob("*.so"))
    assert "no C compiler" in (folder / "plain.txt").read_text()


@pytest.mark.long
def test_source_distribution_makes_a_compiled_wheel_without_cython(checkout: Path, tmp_path: Path) -> None:
    """The wheel is for this interpreter and platform, and works where it is unpacked."""
    source = built(checkout, "build_sdist", tmp_path)
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    asked = build(unpacked, "get_requires_for_build_wheel")
    assert "cython" not in asked.stdout
    wheel = built(unpacked, "build_wheel", tmp_path, hidden=HIDE_CYTHON, SHMPOOL_COMPILED="1", CFLAGS="-O0")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"-{tag}-{tag}-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        assert not [name for name in archive.namelist() if name.endswith((".c", ".pyx", ".pxi", ".h", "plain.txt"))]
    ask = "import shmpool; print(shmpool.__compiled__, shmpool.__file__)"
    for pure, compiled in (("", "True"), ("1", "False")):
        printed = subprocess.check_output(
            [sys.executable, "-P", "-c", ask], text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "SHMPOOL_PURE": pure},
        )  # fmt: skip
        assert printed.split() == [compiled, str(tmp_path / "site/shmpool/__init__.py")]
