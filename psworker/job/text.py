"""A job as canonical JSON: two workers have the same job if and only if their texts are equal."""

import json

from psworker.errors import JobError
from psworker.job.job import Job, job_of, sections_of
from psworker.job.wording import show

__all__ = ["difference", "job_from_json", "job_to_json"]


def job_to_json(job: Job) -> str:
    """The canonical text of a job: equal jobs give equal texts, `job_from_json` gives it back."""
    return json.dumps(sections_of(job), sort_keys=True, separators=(",", ":"), allow_nan=False)


def job_from_json(text: str) -> Job:
    """The job that `job_to_json` wrote. Raises JobError if the text is not such a job."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"the job is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise JobError(f"the job is {show(document)}; expected a JSON object of sections")
    return job_of(document)


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


def _flat(text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {"the whole text": show(text)}
    if not isinstance(document, dict):
        return {"the whole text": show(document)}
    flat = {}
    for section, table in document.items():
        if isinstance(table, dict):
            flat.update({f"[{section}] {key}": show(value) for key, value in table.items()})
        else:
            flat[f"[{section}]"] = show(table)
    return flat
