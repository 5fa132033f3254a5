"""Builds the compiled twin with the package where `SHMPOOL_COMPILED=1` asks for it: a build hook of hatchling's. Where
there is no compiler, the package is built without it, and works the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
SOURCES = ("twin.pyx", "slots.h")


class TwinBuildHook(BuildHookInterface):
    """An editable installation has the extension beside its sources, a wheel has it within."""

    def dependencies(self) -> list[str]:
        return ["cython>=3.1", "setuptools>=70"] if _is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        for stale in HERE.glob("twin.*.so") if version == "editable" else ():
            if stale.name == _file_name():
                stale.unlink()
        if not _is_wanted():
            return
        scratch = self._scratch = tempfile.mkdtemp()
        try:
            built = _compile(Path(scratch))
        except (Exception, SystemExit) as error:  # distutils ends a process that has no compiler
            self.app.display_warning(f"shmpool is built without its compiled part: {error}")
            return
        if version == "editable":
            shutil.copy(built, HERE / built.name)
        else:
            build_data["force_include"][str(built)] = f"shmpool/_fast/{built.name}"
        build_data.update(infer_tag=True, pure_python=False)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_scratch"):
            shutil.rmtree(self._scratch, ignore_errors=True)


def _is_wanted() -> bool:
    return os.environ.get("SHMPOOL_COMPILED", "") not in ("", "0")


def _sanitizers() -> list[str]:
    """For who tests it (docs/compiled.md): `SHMPOOL_SANITIZE=address,undefined`."""
    wanted = os.environ.get("SHMPOOL_SANITIZE", "")
    return [f"-fsanitize={wanted}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if wanted else []


def _digest() -> str:
    """What the sources say: the extension says the same of those that it was made from."""
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


def _file_name() -> str:
    return f"twin{sysconfig.get_config_var('EXT_SUFFIX')}"


def _compile(scratch: Path) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    for name in SOURCES:
        shutil.copy(HERE / name, scratch)
    extension = Extension(
        "shmpool._fast.twin",
        [str(scratch / "twin.pyx")],
        include_dirs=[str(scratch)],
        define_macros=[("TWIN_DIGEST", f'"{_digest()}"')],
        extra_compile_args=["-O2", "-g0", "-fno-strict-aliasing", *_sanitizers()],
        extra_link_args=_sanitizers(),
    )
    modules = cythonize([extension], language_level=3, quiet=True, build_dir=str(scratch / "c"))
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(scratch / "lib"), str(scratch / "temp")
    command.ensure_finalized()
    command.run()
    return scratch / "lib" / "shmpool" / "_fast" / _file_name()
