"""Log lines on standard error, for people (text) or machines (JSON)."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

__all__ = ["RateLimited", "configure_logs"]

_STANDARD: Final = set(vars(logging.makeLogRecord({})))


class _Json(logging.Formatter):
    """One JSON object a line; what a caller passes as ``extra`` are further keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logs(form: str, level: str) -> None:
    """Send all logs of the process to standard error as ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class RateLimited:
    """At most one log line per ``interval`` seconds; the next one says how many were left out."""

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        self._last = -interval
        self._left_out = 0

    def warning(self, now: float, message: str, *args: object) -> None:
        """Log, or count as left out."""
        if now - self._last < self._interval:
            self._left_out += 1
            return
        more = f" ({self._left_out} like it left out)" if self._left_out else ""
        self._logger.warning(message + more, *args)
        self._last = now
        self._left_out = 0
