"""Log lines on standard error, for people (text) or machines (JSON), each with who says it and what of.

What a line is about stands in fields beside its words: ``event`` (see ``protocol.events``) and, as far as
they are known, ``job``, ``worker``, ``shard`` (the server that says it) and ``epoch``. Text has them in
brackets.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.events import Event, about

__all__ = ["RateLimited", "Speaker", "configure_logs"]

_FIELDS: Final = ("event", "job", "worker", "shard", "epoch")
_STANDARD: Final = set(vars(logging.makeLogRecord({})))
_PLAIN: Final = re.compile(r"[\w.:+-]+")


class Speaker:
    """Who this process is: what it knows of that is in each of its log lines.

    Attributes:
        tell: returns ``job``, ``worker``, ``shard`` and ``epoch`` as far as they are known; called for every
            line, from any thread.
    """

    def __init__(self) -> None:
        self.tell: Callable[[], Mapping[str, object]] = dict


class _Signed(logging.Filter):
    """Adds who the process is to each line, unless the line is about somebody else."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self._speaker = speaker

    def filter(self, record: logging.LogRecord) -> bool:
        for key, value in self._speaker.tell().items():
            if value is not None and key not in vars(record):
                setattr(record, key, value)
        return True


class _Text(logging.Formatter):
    """A line for people, who find the fields at its end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (it overrides)
        told = vars(record)
        fields = [f"{key}={_plain(str(told[key]))}" for key in _FIELDS if told.get(key) is not None]
        return super().formatMessage(record) + (f" [{' '.join(fields)}]" if fields else "")


def _plain(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _Json(logging.Formatter):
    """One JSON object a line; what a caller passes as ``extra`` are further keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
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


def configure_logs(form: str, level: str, speaker: Speaker) -> None:
    """Send all logs of the process to standard error as ``text`` or ``json``, signed by ``speaker``."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(_Signed(speaker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class RateLimited:
    """At most one log line per ``interval`` seconds; the next one says how many were left out.

    Args:
        logger: where they go.
        interval: in seconds.
        event: what all of them tell of.
    """

    def __init__(self, logger: logging.Logger, interval: float, event: Event = "peer.refused") -> None:
        self._logger = logger
        self._interval = interval
        self._extra = about(event)
        self._last = -interval
        self._left_out = 0

    def warning(self, now: float, message: str, *args: object) -> None:
        """Log, or count as left out."""
        if now - self._last < self._interval:
            self._left_out += 1
            return
        more = f" ({self._left_out} like it left out)" if self._left_out else ""
        self._logger.warning(message + more, *args, extra=self._extra)
        self._last = now
        self._left_out = 0
