"""Builds the compiled twin with the package, where a C compiler is: a build hook of hatchling's. Elsewhere, or where
anything of it fails, the package is built without it, works the same, and `shmpool doctor` says why.

`SHMPOOL_PURE=1` builds a package without it, for any Python; `SHMPOOL_COMPILED=1` one with it, or fails. A source
distribution has the twin in C, and needs Cython no more. A checkout asks for Cython where a compiler is."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
SOURCES = runpy.run_path(str(HERE / "sources.py"))  # the package is not there to be imported
IN_C = "twin.c"
#: Why a package was built without the twin; `_fast.why_plain` reads it.
REASON = "plain.txt"
#: A build takes some ten seconds of a core; who waits so long has a compiler that hangs.
LONGEST = 300


class TwinBuildHook(BuildHookInterface):
    """An editable installation has the extension beside its sources, a wheel has it within."""

    def dependencies(self) -> list[str]:
        if self.target_name == "sdist" or (not _obstacle() and not (HERE / IN_C).exists()):
            return ["cython>=3.1"]
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="shmpool-"))
        if self.target_name == "sdist":
            self._add_source(build_data)
            return
        built, reason = None, _obstacle()
        if not reason:
            try:
                built = _compile(_translate(self._scratch))
            except Exception as error:
                reason = _explain(error)
        if built is None:
            if _is_set("SHMPOOL_COMPILED"):
                raise RuntimeError(f"SHMPOOL_COMPILED=1, and the compiled part cannot be built: {reason}")
            if not _is_set("SHMPOOL_PURE"):
                self.app.display_warning(f"shmpool is built without its compiled part: {reason}")
            built = self._scratch / REASON
            built.write_text(f"{reason}\n")
        else:
            build_data.update(infer_tag=True, pure_python=False)
        if version == "editable":
            self._put_beside_sources(built)
        else:
            build_data["force_include"][str(built)] = f"shmpool/_fast/{built.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _add_source(self, build_data: dict[str, Any]) -> None:
        try:
            source = _translate(self._scratch)
        except Exception as error:
            self.app.display_warning(f"who builds this source distribution needs Cython: {_explain(error)}")
        else:
            build_data["force_include"][str(source)] = f"shmpool/_fast/{source.name}"

    def _put_beside_sources(self, built: Path) -> None:
        """In place of what an earlier build has put there: a process that runs with it keeps its file."""
        arriving = HERE / f"{built.name}.{os.getpid()}"
        try:
            for name in (_file_name(), REASON):
                if name != built.name:
                    (HERE / name).unlink(missing_ok=True)
            shutil.copy(built, arriving)
            arriving.replace(HERE / built.name)
        except OSError as error:
            with suppress(OSError):
                arriving.unlink(missing_ok=True)
            self.app.display_warning(f"nothing can be put beside the sources, so no compiled part: {error}")


def _obstacle() -> str:
    """Why there is no use in trying, in one line."""
    if _is_set("SHMPOOL_PURE"):
        return "it was installed with SHMPOOL_PURE=1"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it is for CPython with the GIL only"
    if shutil.which(_compiler()[0]) is None:
        return f"there was no C compiler ({_compiler()[0]}) when it was installed"
    with tempfile.TemporaryDirectory(prefix="shmpool-") as scratch:
        least = Path(scratch, "least.c")
        least.write_text("#include <Python.h>\n")
        try:
            _compile(least)
        except (OSError, subprocess.SubprocessError) as error:
            return _explain(error)
    return ""


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _words_of(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def _compiler() -> list[str]:
    return _words_of("CC") or shlex.split(sysconfig.get_config_var("CC") or "cc")


def _sanitizers() -> list[str]:
    """For who tests it (docs/compiled.md): `SHMPOOL_SANITIZE=address,undefined`."""
    wanted = os.environ.get("SHMPOOL_SANITIZE", "")
    return [f"-fsanitize={wanted}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if wanted else []


def _tracing() -> list[str]:
    """For `tests/fast/test_traced.py`: it tells what it does to shared words."""
    return ["-DTWIN_TRACED"] if _is_set("SHMPOOL_TRACED") else []


def _file_name() -> str:
    return f"twin{sysconfig.get_config_var('EXT_SUFFIX')}"


def _translate(scratch: Path) -> Path:
    """The twin in C, beside the header that it includes."""
    for name in SOURCES["names"]():
        shutil.copy(HERE / name, scratch)
    if (HERE / IN_C).exists():
        return Path(shutil.copy(HERE / IN_C, scratch))
    from Cython.Compiler.Main import compile

    name = "shmpool._fast.twin"
    if compile(str(scratch / "twin.pyx"), language_level=3, full_module_name=name).num_errors:
        raise RuntimeError("Cython has found errors in it")
    return scratch / IN_C


def _compile(source: Path) -> Path:
    built = source.parent / _file_name()
    command = [
        *_compiler(), "-O2", "-g0", *_words_of("CFLAGS"), "-fPIC", "-fno-strict-aliasing", "-DNDEBUG", "-w",
        f"-DTWIN_DIGEST={SOURCES['digest']()}u", *_sanitizers(), *_tracing(), "-shared",
        "-I", sysconfig.get_path("include"), "-I", sysconfig.get_path("platinclude"),
        str(source), "-o", str(built), *_words_of("LDFLAGS"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST)
    if not built.exists():
        raise FileNotFoundError(f"{command[0]} made nothing")
    return built


def _explain(error: Exception) -> str:
    """What failed, in one line."""
    if isinstance(error, ImportError):
        return f"Cython was not there when it was installed ({error})"
    said = str(getattr(error, "stderr", "") or "").strip().splitlines()
    why = next((line for line in said if "error" in line.lower()), said[-1] if said else str(error))
    if isinstance(error, subprocess.CalledProcessError) and not said:
        why = f"{error.cmd[0]} ended with status {error.returncode}"
    return f"its compilation failed when it was installed: {why}"
