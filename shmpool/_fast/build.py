"""Builds the compiled twin with the package where `SHMPOOL_COMPILED=1` asks for it and a compiler is: a build hook of
hatchling's. Elsewhere the package is built without it, and works the same.

A source distribution has the twin in C, and needs Cython no more. A checkout asks for Cython where a compiler is."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
SOURCES = ("twin.pyx", "parting.pxi", "objects.pxi", "slots.h")
IN_C = "twin.c"


class TwinBuildHook(BuildHookInterface):
    """An editable installation has the extension beside its sources, a wheel has it within."""

    def dependencies(self) -> list[str]:
        return ["cython>=3.1"] if self.target_name == "sdist" or (_is_wanted() and not (HERE / IN_C).exists()) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            (HERE / _file_name()).unlink(missing_ok=True)
        if self.target_name == "wheel" and not _is_wanted():
            return
        self._scratch = scratch = Path(tempfile.mkdtemp())
        try:
            source = _translate(scratch)
            built = _compile(source) if self.target_name == "wheel" else source
        except Exception as error:
            self.app.display_warning(f"shmpool is built without its compiled part: {_explain(error)}")
            return
        if version == "editable":
            shutil.copy(built, HERE / built.name)
        else:
            build_data["force_include"][str(built)] = f"shmpool/_fast/{built.name}"
        if self.target_name == "wheel":
            build_data.update(infer_tag=True, pure_python=False)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_scratch"):
            shutil.rmtree(self._scratch, ignore_errors=True)


def _is_wanted() -> bool:
    if os.environ.get("SHMPOOL_COMPILED", "") in ("", "0"):
        return False
    return shutil.which(_compiler()[0]) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def _sanitizers() -> list[str]:
    """For who tests it (docs/compiled.md): `SHMPOOL_SANITIZE=address,undefined`."""
    wanted = os.environ.get("SHMPOOL_SANITIZE", "")
    return [f"-fsanitize={wanted}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if wanted else []


def _digest() -> str:
    """What the sources say: the extension says the same of those that it was made from."""
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


def _file_name() -> str:
    return f"twin{sysconfig.get_config_var('EXT_SUFFIX')}"


def _translate(scratch: Path) -> Path:
    """The twin in C, beside the header that it includes."""
    for name in SOURCES:
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
        *_compiler(), "-O2", "-g0", "-fPIC", "-fno-strict-aliasing", "-DNDEBUG", "-w", f'-DTWIN_DIGEST="{_digest()}"',
        *_sanitizers(), "-shared", "-I", sysconfig.get_path("include"), "-I", sysconfig.get_path("platinclude"),
        str(source), "-o", str(built),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return built


def _explain(error: Exception) -> str:
    said = str(getattr(error, "stderr", "") or "").strip().splitlines()
    return said[-1] if said else str(error)
