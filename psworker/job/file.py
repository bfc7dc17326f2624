"""The job file: TOML, its sections [job], [model] and so on, their keys in kebab-case."""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from psworker.errors import JobError
from psworker.job.job import Job, job_of, sections_of
from psworker.job.sections import Section
from psworker.job.wording import show

__all__ = ["job_to_toml", "load_job"]


def load_job(path: Path | None, overrides: Sequence[str], otherwise: Sequence[str] = ()) -> Job:
    """Read a job file (None: the built-in demo) and apply `section.key=value` overrides in order.

    An override's value is read as TOML, and as plain text where it is not TOML. `otherwise` are overrides of
    what neither the file nor another override sets.
    Raises JobError for anything that cannot be used.
    """
    document = _demo() if path is None else _read(path)
    for override in overrides:
        _override(document, override)
    for override in otherwise:
        section, _, key = override.partition("=")[0].partition(".")
        table = document.get(section, {})
        if not isinstance(table, dict) or key not in table:
            _override(document, override)  # which says what is wrong with a section that is none
    return job_of(document)


def job_to_toml(job: Job) -> str:
    """The text of a job file of this job, with all of its keys, from which `load_job` makes an equal one."""
    return "\n".join(
        "".join([f"[{section}]\n", *(f"{_key(key)} = {_written(value)}\n" for key, value in table.items())])
        for section, table in sections_of(job).items()
    )


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _written(key)


def _written(value: object) -> str:
    """A text, a finite number, a truth or a list of these as TOML, which is JSON but for one character."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _demo() -> dict[str, Section]:
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


def _read(path: Path) -> dict[str, Section]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"the job file {path} is not UTF-8: {error}; save it as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
        raise JobError(f"the job file {path} is not TOML: {error}") from error


def _override(document: dict[str, Section], override: str) -> None:
    name, equals, value = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise JobError(f'cannot set "{override}"; expected section.key=value, as in train.epochs=3')
    table = document.setdefault(section, {})
    if not isinstance(table, dict):
        raise JobError(f"{section} is {show(table)}; expected a section [{section}]")
    table[key] = _toml_value(value.strip())


def _toml_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    # More keys than the one mean that the text had lines of its own: it is no value.
    return parsed["value"] if parsed.keys() == {"value"} else text
