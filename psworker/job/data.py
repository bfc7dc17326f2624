"""[data]: where the examples are and how to read them."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from psworker.errors import JobError
from psworker.job.sections import Keys
from psworker.job.values import Parser, integer, text, texts
from psworker.job.wording import nearest, show

__all__ = ["FORMATS", "KEYS", "DataSettings", "check", "end_of", "format_of", "section"]


FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".svmlight": "libsvm",
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npz",
}
"""The format by the end of a file's name."""

PACKINGS: Final = (".gz", ".bz2", ".xz", ".zst")
"""Ends of the names of compressed files."""


def format_of(path: str) -> str | None:
    """The format of a file or of a pattern by the end of its name, in capitals or not."""
    return FORMATS.get(end_of(path))


def end_of(path: str) -> str:
    """The end of a file's name, in small letters, without that of its packing."""
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if name.suffix in PACKINGS else name.suffix


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the examples are and how to read them.

    `source` is a path, a pattern, a URL, or several of these. `target` is the column of the labels, or
    their file (npy). `chunk_rows` is the aimed-at rows per chunk, the unit that workers lease. `columns`
    are the features, empty for all but the target. `classes` are the labels as written, in
    order of class index, empty if labels are numbers. `dimensions` (libsvm) is the number of features.
    `partition` says who trains on what: "leases" (whoever comes), or a part of the data for each of
    the `train.workers`: "contiguous" chunks, "round-robin", or "hash:COLUMN" (CSV), where all rows of
    one value of the column are one worker's.

    `categorical` and `text` are columns whose values, or words, become features by hashing: each has a key
    where `hashed` is set, otherwise there are `hash_buckets` columns for all of them. `missing_values` are
    texts that stand for no number, `missing` what is then done. `class_weights` is "none", "balanced", or
    pairs of a class and what its rows count. `on_error` says whether a bad row ends the work.
    """

    source: str | tuple[str, ...] = "digits"
    target: str = "label"
    chunk_rows: int = 512
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    dimensions: int | None = None
    partition: str = "leases"
    format: str = "auto"
    categorical: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    hashed: bool = False
    hash_buckets: int = 1024
    missing: str = "error"
    missing_values: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
    scale: str = "none"
    class_weights: str | tuple[tuple[str, float], ...] = "none"
    on_error: str = "stop"

    @property
    def places(self) -> tuple[str, ...]:
        """What `source` lists."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def kind(self) -> str | None:
        """The format: as it is set, or of the first file's name; None: it has no known end."""
        if self.format != "auto":
            return self.format
        return "digits" if self.source == "digits" else format_of(self.places[0])

    @property
    def hash_column(self) -> str | None:
        """The column whose values decide to which part a row belongs; None if no column does."""
        kind, _, column = self.partition.partition(":")
        return column if kind == "hash" else None


def _partition(value: object) -> str:
    written = value if isinstance(value, str) and "\0" not in value else ""
    if written not in ("leases", "contiguous", "round-robin") and not re.match("hash:.", written):
        raise ValueError('"leases", "contiguous", "round-robin" or "hash:COLUMN"')
    return written


def _source(value: object) -> str | tuple[str, ...]:
    if isinstance(value, list) and value:
        return tuple(text(item) for item in texts(value))
    return text(value)


def _names(value: object) -> tuple[str, ...]:
    return tuple(text(item) for item in texts(value))


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 (what a parser raises)
    return value


def _one_of(*known: str) -> Parser:
    expected = " or ".join(filter(None, [", ".join(f'"{one}"' for one in known[:-1]), f'"{known[-1]}"']))

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(expected)
        return value

    return parse


def _class_weights(value: object) -> str | tuple[tuple[str, float], ...]:
    if value in ("none", "balanced"):
        return str(value)
    if not isinstance(value, dict) or not value or not all(map(_is_weight, value.values())):
        raise ValueError('"none", "balanced", or what each class counts, as in {spam = 2.0, ham = 1.0}')
    return tuple(sorted((name, float(weight)) for name, weight in value.items()))


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MOST_WEIGHT


_MOST_WEIGHT: Final = 1e30  # far from float32's limit

KEYS: Final[Keys] = {
    "source": _source,
    "target": text,
    "chunk-rows": integer(1),
    "columns": texts,
    "classes": texts,
    "dimensions": integer(1),
    "partition": _partition,
    "format": _one_of("auto", *dict.fromkeys(FORMATS.values())),
    "categorical": _names,
    "text": _names,
    "hashed": _truth,
    "hash-buckets": integer(1, 2**24),
    "missing": _one_of("error", "zero", "mean", "skip"),
    "missing-values": texts,
    "scale": _one_of("none", "standard", "minmax"),
    "class-weights": _class_weights,
    "on-error": _one_of("stop", "skip"),
}


def section(data: DataSettings) -> dict[str, Any]:
    """The section as it is written."""
    weights = data.class_weights
    return {
        "source": data.source,
        "target": data.target,
        "chunk-rows": data.chunk_rows,
        "columns": data.columns,
        "classes": data.classes,
        **({} if data.dimensions is None else {"dimensions": data.dimensions}),
        "partition": data.partition,
        "format": data.format,
        "categorical": data.categorical,
        "text": data.text,
        "hashed": data.hashed,
        "hash-buckets": data.hash_buckets,
        "missing": data.missing,
        "missing-values": data.missing_values,
        "scale": data.scale,
        "class-weights": weights if isinstance(weights, str) else dict(weights),
        "on-error": data.on_error,
    }


def check(data: DataSettings) -> None:
    """Raise JobError for keys that do not go together."""
    if data.target in data.columns:
        raise JobError(f'[data] columns has the target "{data.target}"; take it out of columns')
    if data.hash_column and data.kind != "csv":
        raise JobError(
            f"[data] partition = {show(data.partition)} needs the columns of a .csv file, and source is "
            f'{show(data.source)}; take "contiguous" or "round-robin"'
        )
    _check_columns(data)
    _check_weights(data)


def _check_columns(data: DataSettings) -> None:
    """Categories and texts are columns of a format that has names for them, each of one kind."""
    for key, names in (("categorical", data.categorical), ("text", data.text)):
        if data.target in names:
            raise JobError(f'[data] {key} has the target "{data.target}"; take it out of {key}')
        if names and data.kind not in ("csv", "parquet"):
            raise JobError(f"[data] {key} = {show(list(names))} needs columns with names: CSV or Parquet")
    if both := sorted(set(data.categorical) & set(data.text)):
        raise JobError(f'[data] categorical and text both have "{both[0]}"; take it out of one')
    if data.hashed and data.kind == "libsvm" and data.scale != "none":
        raise JobError(
            f'[data] scale = "{data.scale}" needs columns, and with hashed = true a libsvm file has none; '
            'take scale = "none"'
        )
    if data.kind == "digits" and (data.hashed or data.scale != "none" or data.class_weights != "none"):
        raise JobError("[data] hashed, scale and class-weights are for files; leave them out for digits")


def _check_weights(data: DataSettings) -> None:
    if data.class_weights == "none":
        return
    if not data.classes:
        raise JobError("[data] class-weights needs the labels; list them in [data] classes")
    for name, _ in () if isinstance(data.class_weights, str) else data.class_weights:
        if name not in data.classes:
            raise JobError(f'[data] class-weights has "{name}"{nearest(name, data.classes)}')
