"""The compiled twin of the hot paths: an optional part, built on request (docs/compiled.md), chosen at import, and
switched off by `SHMPOOL_PURE=1`.

`twin.pyx` is Cython over `slots.h`; `build.py` compiles it when the package is built with `SHMPOOL_COMPILED=1`.
"""

from __future__ import annotations

import os
from typing import Final


def _install() -> bool:
    if os.environ.get("SHMPOOL_PURE", "") not in ("", "0"):
        return False
    try:
        from . import twin
    except ImportError:  # it was not built, or for another version
        return False
    twin.install()
    return True


#: Whether this process runs the compiled twin.
COMPILED: Final = _install()
