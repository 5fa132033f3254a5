"""The compiled twin of the hot paths: an optional part, built where a compiler is (docs/compiled.md), chosen at import,
and switched off by `SHMPOOL_PURE=1`.

`twin.pyx` is Cython over `slots.h`; `build.py` compiles it when the package is built.
"""

from __future__ import annotations

import os

from ..system.outside import own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TWIN: Final = f"{__name__}.twin"
_HERE: Final = os.path.dirname(__file__)


def _install() -> str:
    """Puts the twin in the place of the plain methods. Says why, where it does not."""
    if os.environ.get("SHMPOOL_PURE", "") not in ("", "0"):
        return "SHMPOOL_PURE=1 switches the compiled part off"
    try:
        from .twin import DIGEST, install

        if os.path.exists(f"{_HERE}/twin.pyx"):
            _check(DIGEST)
        install()
    except own_or_called(Exception) as error:  # one that was made from other sources may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == _TWIN:
            return _reason_of_build()
        return f"the compiled part cannot be used: {error}"
    return ""


def _check(digest: int) -> None:
    from . import sources

    if sources.digest() != digest:
        raise ImportError(f"it was made from other sources than {_HERE} has now: install them again")


def _reason_of_build() -> str:
    try:
        with open(f"{_HERE}/plain.txt") as file:
            return file.read().strip()
    except own(OSError):
        return "the compiled part was not built for this version of Python"


#: Why this process runs without the compiled twin; empty where it runs it.
WHY_PLAIN: Final = _install()
#: Whether this process runs the compiled twin.
COMPILED: Final = not WHY_PLAIN
