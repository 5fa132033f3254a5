"""Where log lines go and what they look like: text for people, with the journal's priorities when
systemd reads them, or a JSON object a line. More lines than anybody reads are left out and counted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

#: Lines that may come at once, and seconds from one to the next in the long run.
BURST: Final = 200
SECONDS_A_LINE: Final = 0.1

#: syslog's, as systemd reads them (sd-daemon(3)).
_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def configure(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send all loggers' lines to *stream*. *form* is ``text`` or ``json``."""
    handler = BoundedHandler(stream)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    elif _is_journal(stream):
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("shmpoold[%(process)d] %(levelname)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _is_journal(stream: TextIO) -> bool:
    """Whether the journal reads this very stream: it says which by device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """Each line with its priority; the journal adds time and pid."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITIES.get(record.levelno, 5)}>"
        return "\n".join(priority + line for line in super().format(record).splitlines() or [""])


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, ISO 8601), level, logger, pid, message; exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Lets `BURST` lines through at once and one each `SECONDS_A_LINE`; the next one that passes is
    preceded by how many did not. Errors always pass: they are few, or the end is near."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._room = float(BURST)
        self._counted_at = clock()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        self._room = min(BURST, self._room + (now - self._counted_at) / SECONDS_A_LINE)
        self._counted_at = now
        if self._room < 1 and record.levelno < logging.ERROR:
            self._left_out += 1
            return
        self._room = max(0.0, self._room - 1)
        left_out, self._left_out = self._left_out, 0
        if left_out:
            text = "%d log lines were left out: more than one each %g s"
            super().emit(
                logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (left_out, SECONDS_A_LINE), None)
            )
        super().emit(record)
