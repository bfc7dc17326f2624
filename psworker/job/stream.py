"""[stream]: learning from a stream that does not end. A job that has this section has no [data] source."""

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from protocol.daemon.settings import address, duration
from psworker.errors import JobError
from psworker.job.sections import Keys
from psworker.job.values import Parser, integer, texts
from psworker.job.wording import kebab, show

__all__ = ["IGNORED", "KEYS", "StreamSettings", "check", "section"]

_MOST: Final = 2**53


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Where the stream is, how it is read, how its predictions are judged, and what is done about drift.

    `source`: "-", "tcp://host:port", "tail:FILE" (one for each partition), or "kafka://host:port/topic".
    `format`: "csv" or "json", an object a line. `fields` are the columns of a CSV line in their order; empty:
    the first line names them. `replays`: whether "-" or tcp sends all from the beginning to who comes again.
    `max_wait`: seconds until a mini-batch that is not full is learnt from.

    `window` and `forget` are those of the prequential measures, which the log tells every `report_every`
    examples. `decay`: what is left of old sums after one more example, for optimizers that add.

    `drift`: "none", "adwin" with `drift_confidence`, or "page-hinkley" with `drift_tolerance` and
    `drift_threshold`. `on_drift`: "report", "raise-rate" to `raised_rate` for `raised_for` examples, or
    "restart". After a drift, and at the start, nobody looks for one for `cooldown` examples.
    """

    source: tuple[str, ...]
    format: str = "csv"
    fields: tuple[str, ...] = ()
    replays: bool = False
    max_wait: float = 0.2
    window: int = 1000
    forget: float = 0.999
    report_every: int = 10_000
    decay: float = 1.0
    drift: str = "none"
    drift_confidence: float = 0.002
    drift_tolerance: float = 0.01
    drift_threshold: float = 100.0
    on_drift: str = "report"
    raised_rate: float = 10.0
    raised_for: int = 2000
    cooldown: int = 2000

    @property
    def kind(self) -> str:
        """What the source is: "-", "tcp", "tail" or "kafka"."""
        return self.source[0].partition(":")[0]


def _source(value: object) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    expected = '"-", "tcp://host:port", "tail:FILE", a list of "tail:FILE", or "kafka://host:port/topic"'
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise ValueError(expected)
    if not all(map(_is_source, listed)) or len(set(listed)) != len(listed):
        raise ValueError(expected)
    if len(listed) > 1 and not all(one.startswith("tail:") for one in listed):
        raise ValueError(expected)
    return tuple(listed)


def _is_source(text: str) -> bool:
    if "\0" in text:
        return False
    kind, _, rest = text.partition(":")
    match kind:
        case "-":
            return text == "-"
        case "tail":
            return bool(rest)
        case "tcp":
            return _has_address(text, r"")
        case "kafka":
            return _has_address(text, r"/[A-Za-z0-9._-]{1,249}")
        case _:
            return False


def _has_address(text: str, path: str) -> bool:
    try:
        parts = urlsplit(text)
        address(parts.netloc)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return re.fullmatch(path, parts.path) is not None and not parts.query and not parts.fragment


def _one_of(*words: str) -> Parser:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(" or ".join(f'"{word}"' for word in words))
        return value

    return parse


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 (what a parser raises)
    return value


def _wait(value: object) -> float:
    try:
        seconds = duration(value if isinstance(value, str) else "")
    except argparse.ArgumentTypeError:
        seconds = 0.0
    if not 0.001 <= seconds <= 3600:
        raise ValueError('a time from "1ms" to "1h", such as "200ms"')
    return seconds


def _between(low: float, high: float, expected: str) -> Parser:
    """A number above ``low``, at most ``high``."""

    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            raise ValueError(expected)
        return float(value)

    return parse


_positive: Final = _between(0, 1e9, "a number above 0, at most 1e9")
_factor: Final = _between(0, 1, "a number above 0, at most 1")

KEYS: Final[Keys] = {
    "source": _source,
    "format": _one_of("csv", "json"),
    "fields": texts,
    "replays": _flag,
    "max-wait": _wait,
    "window": integer(1, _MOST),
    "forget": _factor,
    "report-every": integer(1, _MOST),
    "decay": _factor,
    "drift": _one_of("none", "adwin", "page-hinkley"),
    "drift-confidence": _between(0, 0.5, "a probability above 0, at most 0.5"),
    "drift-tolerance": _factor,
    "drift-threshold": _positive,
    "on-drift": _one_of("report", "raise-rate", "restart"),
    "raised-rate": _positive,
    "raised-for": integer(1, _MOST),
    "cooldown": integer(0, _MOST),
}

READ_AS: Final[dict[str, Any]] = {"source": "stream", "format": "csv"}
"""What the section [data] is, which says no more than what is in a line."""

IGNORED: Final[Mapping[str, frozenset[str]]] = {
    "data": frozenset({"source", "format", "chunk-rows", "partition", "dimensions"}),
    "eval": frozenset({"every", "holdout"}),
}
"""Keys of other sections that mean nothing to a stream, and in [train] all but these:"""

_SURVEYS: Final = {"scale": ("standard", "minmax"), "missing": ("mean",), "class-weights": ("balanced",)}

_TRAIN: Final = frozenset({"batch-size", "staleness", "workers"})


def section(stream: StreamSettings) -> dict[str, Any]:
    """The section as it is written."""
    written = {kebab(name): getattr(stream, name) for name in StreamSettings.__dataclass_fields__}
    return {**written, "source": list(stream.source), "max-wait": f"{stream.max_wait * 1000:.12g}ms"}


def check(document: Mapping[str, Mapping[str, object]], stream: StreamSettings) -> None:
    """Raise JobError for what does not go together, or means nothing to a stream."""
    for name, table in document.items():
        for key in table:
            if _is_ignored(name, key):
                raise JobError(f"[{name}] {key} means nothing to a job with a [stream]; take it out")
    data = document.get("data", {})
    if document.get("train", {}).get("staleness", "inf") not in ("inf", math.inf):
        raise JobError("[train] staleness: workers do not wait for each other's streams; take it out")
    if stream.fields and stream.format == "json":
        raise JobError("[stream] fields are the columns of CSV lines; take it out where format is json")
    target = data.get("target", "label")
    if stream.fields and target not in stream.fields:
        raise JobError(
            f"[stream] fields has no {show(target)}, which is [data] target; list all columns of a line"
        )
    if stream.kind == "kafka" and stream.format == "csv" and not stream.fields:
        raise JobError("[stream] has no fields, and Kafka's records no header; list their columns")
    for key, needing in _SURVEYS.items():
        if data.get(key) in needing:
            raise JobError(
                f"[data] {key} = {show(data[key])} needs a look at all the data, and a stream has no end"
            )
    if not stream.fields and not any(data.get(key) for key in ("columns", "categorical", "text")):
        raise JobError(
            "[data] has no columns; list the features: a stream's first line comes too late to tell"
        )
    if stream.replays and stream.kind not in ("-", "tcp"):
        raise JobError(f'[stream] replays is of "-" and tcp; {stream.kind} goes on where it was')


def meaning(document: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return the sections of a stream's job without the keys that mean nothing to it."""
    return {
        name: {key: value for key, value in table.items() if not _is_ignored(name, key)}
        for name, table in document.items()
    }


def _is_ignored(name: str, key: str) -> bool:
    return key in IGNORED.get(name, ()) or (name == "train" and key not in _TRAIN)
