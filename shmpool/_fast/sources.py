"""What the compiled twin is made from, where it lies beside it: in a checkout, and in a source distribution."""

from __future__ import annotations

import binascii
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FOLDER: Final = os.path.dirname(os.path.abspath(__file__))


def names() -> list[str]:
    return sorted(name for name in os.listdir(FOLDER) if name.endswith((".pyx", ".pxi", ".h")))


def digest() -> int:
    """The extension has the same of those that it was made from."""
    return binascii.crc32(b"".join(map(_read, names())))


def _read(name: str) -> bytes:
    with open(f"{FOLDER}/{name}", "rb") as file:
        return file.read()
