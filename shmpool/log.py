"""The logger ``shmpool``: a broker lost and found, and what should not happen. `logging` is imported when there is
something to say: most workers never have anything.

A program that has not set up logging sees errors only: that a broker is away is no trouble of
a program that goes on without it.
"""

from __future__ import annotations

from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger, LogRecord


@cache
def log() -> Logger:
    """The logger."""
    import logging

    class ErrorsOnly(logging.Handler):
        """In the place of Python's last resort, which shows warnings too."""

        def handle(self, record: LogRecord) -> bool:
            is_shown = record.levelno >= logging.ERROR and not logging.getLogger().handlers
            if is_shown and logging.lastResort is not None:
                logging.lastResort.handle(record)
            return is_shown

    logger = logging.getLogger("shmpool")
    logger.addHandler(ErrorsOnly())
    return logger
