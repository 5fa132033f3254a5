"""What the compiled twin is made from, where it lies beside it: in a checkout, and in a source distribution."""

from __future__ import annotations

import binascii
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent


def names() -> list[str]:
    return sorted(one.name for one in FOLDER.iterdir() if one.suffix in {".pyx", ".pxi", ".h"})


def digest() -> int:
    """The extension has the same of those that it was made from."""
    return binascii.crc32(b"".join((FOLDER / name).read_bytes() for name in names()))
