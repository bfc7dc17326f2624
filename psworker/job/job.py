"""A whole job, and how it is made of its sections."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from psworker.errors import JobError
from psworker.job import data, evaluation, model, optimizer, stream, train
from psworker.job.data import DataSettings
from psworker.job.evaluation import EvalSettings
from psworker.job.model import ModelSettings
from psworker.job.optimizer import OptimizerSettings, optimizer_of
from psworker.job.sections import Keys, closed, opened
from psworker.job.stream import StreamSettings
from psworker.job.train import TrainSettings
from psworker.job.values import identifier, integer
from psworker.job.wording import nearest, show

__all__ = ["Job", "job_of", "sections_of"]


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job; all the workers of a job have an equal one. With a `stream` it has no epochs."""

    model: ModelSettings
    name: str = "default"
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    stream: StreamSettings | None = None

    @property
    def parts(self) -> int:
        """Into how many parts the data is cut: one for each worker that the job starts with, or just one."""
        return 1 if self.data.partition == "leases" else self.train.workers


_KEYS: Final[Mapping[str, Keys]] = {
    "job": {"name": identifier, "seed": integer(0)},
    "model": model.KEYS,
    "data": data.KEYS,
    "train": train.KEYS,
    "optimizer": optimizer.KEYS,
    "eval": evaluation.KEYS,
    "stream": stream.KEYS,
}


def sections_of(job: Job) -> dict[str, dict[str, object]]:
    """All sections with all their keys, from which `job_of` makes an equal job."""
    sections: dict[str, dict[str, object]] = {
        "job": {"name": job.name, "seed": job.seed},
        "model": model.section(job.model),
        "data": data.section(job.data),
        "train": train.section(job.train),
        "optimizer": optimizer.section(job.optimizer),
        "eval": evaluation.section(job.eval),
    }
    if job.stream is None:
        return sections
    return {**stream.meaning(sections), "stream": stream.section(job.stream)}


def job_of(document: Mapping[str, object]) -> Job:
    """The job that these sections describe. Raises JobError for anything that cannot be used."""
    for name, table in document.items():
        if name not in _KEYS:
            raise JobError(f"there is no section [{name}]{nearest(name, _KEYS)}")
        if not isinstance(table, dict):
            raise JobError(f"{name} is {show(table)}; expected a section [{name}]")
    closed_sections = ("job", "data", "train", "eval", "stream")
    arguments = {name: closed(name, _KEYS[name], document) for name in closed_sections}
    of_model, model_settings = opened("model", _KEYS["model"], document)
    of_optimizer, optimizer_settings = opened("optimizer", _KEYS["optimizer"], document)
    if "kind" not in of_model:
        raise JobError('[model] has no key "kind"; set it, for instance kind = "softmax"')
    job = Job(
        **arguments["job"],
        model=ModelSettings(of_model["kind"], model_settings),
        data=DataSettings(**arguments["data"] | (stream.READ_AS if "stream" in document else {})),
        train=TrainSettings(**arguments["train"]),
        optimizer=OptimizerSettings(of_optimizer["name"], optimizer_settings)
        if "name" in of_optimizer
        else OptimizerSettings(settings=optimizer_settings or OptimizerSettings().settings),
        eval=EvalSettings(**arguments["eval"]),
        stream=_stream(document, arguments["stream"]),
    )
    data.check(job.data)
    train.check(job.train, job.eval)
    optimizer_of(job.optimizer)  # or say what is wrong with it
    return job


def _stream(document: Mapping[str, Any], arguments: Mapping[str, Any]) -> StreamSettings | None:
    if "stream" not in document:
        return None
    if "source" not in arguments:
        raise JobError('[stream] has no key "source"; set it, for instance source = "-"')
    settings = StreamSettings(**arguments)
    stream.check(document, settings)
    return settings
