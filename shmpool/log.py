"""The logger ``shmpool``: a broker lost and found, and what should not happen.

A program that has not set up logging sees errors only: that a broker is away is no trouble of
a program that goes on without it.
"""

from __future__ import annotations

import logging
from typing import Final


class _ErrorsOnly(logging.Handler):
    """In the place of Python's last resort, which shows warnings too."""

    def handle(self, record: logging.LogRecord) -> bool:
        is_shown = record.levelno >= logging.ERROR and not logging.getLogger().handlers
        if is_shown and logging.lastResort is not None:
            logging.lastResort.handle(record)
        return is_shown


log: Final = logging.getLogger("shmpool")
log.addHandler(_ErrorsOnly())
