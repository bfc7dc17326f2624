"""The job file: what to train, on which data, and how.

A job is TOML with the sections [job], [model], [data], [train], [optimizer] and [eval], its keys in
kebab-case. The same sections as canonical JSON are what workers compare through the server: two
workers have the same job if and only if their texts are equal.
"""

import dataclasses
import difflib
import json
import math
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from protocol.errors import BadRequest
from protocol.fields import check_name
from protocol.optimizers import OPTIMIZERS, SCHEDULES, Add, Optimizer, Schedule, settings_of
from psworker.errors import JobError

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"
Settings: TypeAlias = tuple[tuple[str, Value], ...]
"""Open-ended settings, sorted by name; names are in snake_case, as Python takes them."""

_T = TypeVar("_T")
_Section: TypeAlias = dict[str, Any]
_Parser: TypeAlias = Callable[[object], Any]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`kind` is a built-in model or "package.module:Class"; `settings` go to its constructor."""

    kind: str
    settings: Settings = ()


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the examples are and how to read them.

    `chunk_rows` is the aimed-at rows per chunk, the unit that workers lease. `columns` (CSV) are the
    features, empty for all but the target. `classes` (CSV, libsvm) are the labels as written, in
    order of class index, empty if labels are numbers. `dimensions` (libsvm) is the number of features.
    `partition` says who trains on what: "leases" (whoever comes), or a part of the data for each of
    the `train.workers`: "contiguous" chunks, "round-robin", or "hash:COLUMN" (CSV), where all rows of
    one value of the column are one worker's.
    """

    source: str = "digits"
    target: str = "label"
    chunk_rows: int = 512
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    dimensions: int | None = None
    partition: str = "leases"

    @property
    def hash_column(self) -> str | None:
        """The column whose values decide to which part a row belongs; None if no column does."""
        kind, _, column = self.partition.partition(":")
        return column if kind == "hash" else None


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. `staleness` is 0 (synchronous), a number of steps, or `math.inf` (asynchronous).

    The job starts when `workers` workers have joined. At staleness 0, a step does not wait for the gradients
    of the slowest `backup_workers`.
    """

    epochs: int = 5
    batch_size: int = 64
    staleness: float = math.inf
    workers: int = 1
    backup_workers: int = 0


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """The server's optimizer, as `optimizer_of` makes it.

    `settings` are its own and those that all have, `schedule`, and the schedule's own as `schedule_...`.
    """

    name: str = "sgd"
    settings: Settings = (("lr", 0.1),)


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """Evaluate after each `every` epochs (0: never) on the fraction `holdout` of the rows."""

    every: int = 1
    holdout: float = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job; all the workers of a job have an equal one."""

    model: ModelSettings
    name: str = "default"
    seed: int = 0
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    eval: EvalSettings = EvalSettings()

    @property
    def parts(self) -> int:
        """Into how many parts the data is cut: one for each worker that the job starts with, or just one."""
        return 1 if self.data.partition == "leases" else self.train.workers


def load_job(path: Path | None, overrides: Sequence[str]) -> Job:
    """Read a job file (None: the built-in demo) and apply `section.key=value` overrides in order.

    An override's value is read as TOML, and as plain text where it is not TOML.
    Raises JobError for anything that cannot be used.
    """
    document = _demo() if path is None else _read(path)
    for override in overrides:
        _override(document, override)
    return _job(document)


def job_to_json(job: Job) -> str:
    """The canonical text of a job: equal jobs give equal texts, `job_from_json` gives it back."""
    document = {
        "job": {"name": job.name, "seed": job.seed},
        "model": {"kind": job.model.kind, **_kebab(job.model.settings)},
        "data": {
            "source": job.data.source,
            "target": job.data.target,
            "chunk-rows": job.data.chunk_rows,
            "columns": job.data.columns,
            "classes": job.data.classes,
            **({} if job.data.dimensions is None else {"dimensions": job.data.dimensions}),
            "partition": job.data.partition,
        },
        "train": {
            "epochs": job.train.epochs,
            "batch-size": job.train.batch_size,
            "staleness": "inf" if math.isinf(job.train.staleness) else int(job.train.staleness),
            "workers": job.train.workers,
            "backup-workers": job.train.backup_workers,
        },
        "optimizer": {"name": job.optimizer.name, **_kebab(job.optimizer.settings)},
        "eval": {
            "every": f"{job.eval.every} epochs" if job.eval.every else "never",
            "holdout": job.eval.holdout,
        },
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def job_from_json(text: str) -> Job:
    """The job that `job_to_json` wrote. Raises JobError if the text is not such a job."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"the job is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise JobError(f"the job is {_show(document)}; expected a JSON object of sections")
    return _job(document)


def difference(a: str, b: str) -> str:
    """Name the first key that differs between two canonical jobs, and its value in `a` and in `b`.

    Either may come from another version of this program, so nothing is assumed of their shape.
    """
    left, right = _flat(a), _flat(b)
    for key in sorted(left.keys() | right.keys()):
        mine, other = left.get(key, "absent"), right.get(key, "absent")
        if mine != other:
            return f"{key} is {mine} in one and {other} in the other"
    return "the texts differ, but not in the value of any key"


def optimizer_of(settings: OptimizerSettings) -> Optimizer:
    """The optimizer that a section describes. Raises JobError for one that there is not."""
    written = dict(settings.settings)
    cls = _class_of(OPTIMIZERS, "name", settings.name)
    takes_schedule = cls is not Add
    schedule: type[Schedule] | None = None
    if takes_schedule and "schedule" in written:
        schedule = _class_of(SCHEDULES, "schedule", written.pop("schedule"))
    own = {name: name for name in settings_of(cls)}
    of_schedule = {} if schedule is None else {f"schedule_{name}": name for name in settings_of(schedule)}
    known = [*own, *of_schedule, *(["schedule"] if takes_schedule else [])]
    for name in written:
        if name not in known:
            known = [_key(name) for name in known]
            raise JobError(
                f'[optimizer] {cls.name} has no setting "{_key(name)}"{nearest(_key(name), known)}'
            )
    arguments = _made_of(written, own)
    if schedule is not None:
        arguments["schedule"] = _build(schedule, _made_of(written, of_schedule), of_schedule)
    return _build(cls, arguments, own)


def _class_of(known: Mapping[str, type[_T]], key: str, name: object) -> type[_T]:
    if not isinstance(name, str) or name not in known:
        raise JobError(f"[optimizer] {key} = {_show(name)} is none{nearest(str(name), known)}")
    return known[name]


def _made_of(written: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments whose names in the section are those of `names`."""
    return {name: written[key] for key, name in names.items() if key in written}


def _build(cls: type[_T], arguments: Mapping[str, Any], names: Mapping[str, str]) -> _T:
    keys = {name: _key(key) for key, name in names.items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in arguments:
            raise JobError(f'[optimizer] has no key "{keys[field.name]}"; the schedule needs it')
    try:
        return cls(**arguments)
    except BadRequest as error:
        shown = _show(arguments[error.field])
        raise JobError(f"[optimizer] {keys[error.field]} = {shown}; {error.message}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: '; did you mean "epochs"?', or what is known."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1)
    if match:
        return f'; did you mean "{match[0]}"?'
    return f"; known: {', '.join(names)}" if names else "; there are none"


def _demo() -> dict[str, _Section]:
    # 225 rows a chunk cut the 1797 digits into 8 even chunks, so that 2, 4 or 8 workers have equal
    # shares.
    return {
        "job": {"name": "digits"},
        "model": {"kind": "softmax"},
        "data": {"source": "digits", "chunk-rows": 225},
        "train": {"epochs": 60, "batch-size": 32, "staleness": 0},
        "optimizer": {"name": "sgd", "lr": 0.5},
        "eval": {"every": "5 epochs"},
    }


def _read(path: Path) -> dict[str, _Section]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"the job file {path} is not UTF-8: {error}; save it as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
        raise JobError(f"the job file {path} is not TOML: {error}") from error


def _override(document: dict[str, _Section], override: str) -> None:
    name, equals, value = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise JobError(f'cannot set "{override}"; expected section.key=value, as in train.epochs=3')
    table = document.setdefault(section, {})
    if not isinstance(table, dict):
        raise JobError(f"{section} is {_show(table)}; expected a section [{section}]")
    table[key] = _toml_value(value.strip())


def _toml_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    # More keys than the one mean that the text had lines of its own: it is no value.
    return parsed["value"] if parsed.keys() == {"value"} else text


def _job(document: Mapping[str, object]) -> Job:
    for name, table in document.items():
        if name not in _KEYS:
            raise JobError(f"there is no section [{name}]{nearest(name, _KEYS)}")
        if not isinstance(table, dict):
            raise JobError(f"{name} is {_show(table)}; expected a section [{name}]")
    closed = {name: _closed(name, document) for name in ("job", "data", "train", "eval")}
    model, model_settings = _open("model", document)
    named, optimizer_settings = _open("optimizer", document)
    if "kind" not in model:
        raise JobError('[model] has no key "kind"; set it, for instance kind = "softmax"')
    data = DataSettings(**closed["data"])
    if data.target in data.columns:
        raise JobError(f'[data] columns has the target "{data.target}"; take it out of columns')
    if data.hash_column and not data.source.lower().endswith(".csv"):
        raise JobError(
            f"[data] partition = {_show(data.partition)} needs the columns of a .csv file, and source is "
            f'{_show(data.source)}; take "contiguous" or "round-robin"'
        )
    optimizer = (
        OptimizerSettings(named["name"], optimizer_settings)
        if "name" in named
        else OptimizerSettings(settings=optimizer_settings or OptimizerSettings().settings)
    )
    optimizer_of(optimizer)  # or say what is wrong with it
    return Job(
        **closed["job"],
        model=ModelSettings(model["kind"], model_settings),
        data=data,
        train=TrainSettings(**closed["train"]),
        optimizer=optimizer,
        eval=EvalSettings(**closed["eval"]),
    )


def _closed(section: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a section that has these keys and no others."""
    known = _KEYS[section]
    table: _Section = document.get(section, {})
    for key in table:
        if key not in known:
            raise JobError(f'[{section}] has no key "{key}"{nearest(key, known)}')
    return {key.replace("-", "_"): _parse(section, key, value, known[key]) for key, value in table.items()}


def _open(section: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], Settings]:
    """The known keys of a section, and the rest of it as settings for someone else to check."""
    known = _KEYS[section]
    table: _Section = document.get(section, {})
    mine = {key: _parse(section, key, table[key], known[key]) for key in known if key in table}
    rest: dict[str, Value] = {}
    for key in table.keys() - known.keys():
        if "_" in key:
            kebab = key.replace("_", "-")
            raise JobError(f'[{section}] has no key "{key}"; keys are written "{kebab}"')
        rest[key.replace("-", "_")] = _parse(section, key, table[key], _setting)
    return mine, tuple(sorted(rest.items()))


def _parse(section: str, key: str, value: object, parser: _Parser) -> Any:
    try:
        return parser(value)
    except ValueError as error:
        raise JobError(f"[{section}] {key} = {_show(value)}; expected {error}") from error


# Parsers of one value. What they raise says what was expected; `_parse` adds where and what it was.


def _integer(low: int, high: int = 2**63 - 1) -> _Parser:
    expected = f"a whole number from {low} to {high}" if low != 1 else "a whole number, at least 1"

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text that is not empty and has no NUL character")
    return value


def _job_name(value: object) -> str:
    text = _text(value)
    try:
        check_name(text, "name")
    except BadRequest as error:
        raise ValueError(f"a name; {error.message}") from error
    return text


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError('a list of texts, as in ["a", "b"]')
    if len(set(value)) != len(value):
        raise ValueError("a list without repetitions")
    return tuple(value)


def _partition(value: object) -> str:
    text = value if isinstance(value, str) and "\0" not in value else ""
    if text not in ("leases", "contiguous", "round-robin") and not re.match("hash:.", text):
        raise ValueError('"leases", "contiguous", "round-robin" or "hash:COLUMN"')
    return text


def _staleness(value: object) -> float:
    if value in ("inf", math.inf):
        return math.inf
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError('0 (synchronous), a number of steps that a worker may be ahead, or "inf"')
    return float(value)


def _every(value: object) -> int:
    if (value == 0 and not isinstance(value, bool)) or value == "never":
        return 0
    match = re.fullmatch(r"([1-9][0-9]{0,8}) epochs?", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('"1 epoch", "3 epochs" or "never"')
    return int(match[1])


def _holdout(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError("a number from 0 up to, but not including, 1")
    return float(value)


def _setting(value: object) -> Value:
    if isinstance(value, list):
        return tuple(_setting(item) for item in value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("a finite number, a text, true, false, or a list of these")


_KEYS: dict[str, dict[str, _Parser]] = {
    "job": {"name": _job_name, "seed": _integer(0)},
    "model": {"kind": _text},
    "data": {
        "source": _text,
        "target": _text,
        "chunk-rows": _integer(1),
        "columns": _texts,
        "classes": _texts,
        "dimensions": _integer(1),
        "partition": _partition,
    },
    "train": {
        "epochs": _integer(1),
        "batch-size": _integer(1),
        "staleness": _staleness,
        "workers": _integer(1),
        "backup-workers": _integer(0, 2**20),
    },
    "optimizer": {"name": _text},
    "eval": {"every": _every, "holdout": _holdout},
}


def _kebab(settings: Settings) -> dict[str, Value]:
    return {_key(name): value for name, value in settings}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _flat(text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {"the whole text": _show(text)}
    if not isinstance(document, dict):
        return {"the whole text": _show(document)}
    flat = {}
    for section, table in document.items():
        if isinstance(table, dict):
            flat.update({f"[{section}] {key}": _show(value) for key, value in table.items()})
        else:
            flat[f"[{section}]"] = _show(table)
    return flat


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) <= 80:
        return json.dumps(value, ensure_ascii=False)  # quotes, and escapes control characters
    return reprlib.repr(value)
