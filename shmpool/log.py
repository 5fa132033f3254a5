"""The logger ``shmpool``: a broker lost and found, and what should not happen.

A program that has not set up logging sees errors only: that a broker is away is no trouble of
a program that goes on without it. So one that has not even imported `logging` need not have it for us: errors go to
stderr as they are. We never import it: what it has done at forks is registered by its import, and a fork that another
thread is in the middle of would come by half of that.
"""

from __future__ import annotations

import sys
from functools import cache

from .system.importing import door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger, LogRecord


def info(text: str, *values: object) -> None:
    """Something of interest."""
    logger = _logger()
    if logger is not None:
        logger.info(text, *values)


def warning(text: str, *values: object) -> None:
    """Something that a program goes on without."""
    logger = _logger()
    if logger is not None:
        logger.warning(text, *values)


def exception(text: str) -> None:
    """What should not happen, with the exception that is being handled."""
    logger = _logger()
    if logger is not None:
        logger.exception(text)
    elif sys.stderr is not None:
        print(text, file=sys.stderr)
        sys.__excepthook__(*sys.exc_info())


def _logger() -> Logger | None:
    """None where nobody has imported `logging`, or just imports it."""
    logging = sys.modules.get("logging")
    if logging is None or getattr(logging.__spec__, "_initializing", False):
        return None
    return _make_logger()


@cache
def _make_logger() -> Logger:
    with door:
        import logging  # it is there

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
