"""The job file: what to train, on which data, and how. A file of its own for each section."""

from psworker.job.data import DataSettings
from psworker.job.evaluation import EvalSettings, Fold
from psworker.job.file import job_to_toml, load_job
from psworker.job.job import Job
from psworker.job.model import ModelSettings
from psworker.job.optimizer import OptimizerSettings, optimizer_of
from psworker.job.stream import StreamSettings
from psworker.job.text import difference, job_from_json, job_to_json
from psworker.job.train import TrainSettings
from psworker.job.values import Settings, Value
from psworker.job.wording import nearest

__all__ = [
    "DataSettings",
    "EvalSettings",
    "Fold",
    "Job",
    "ModelSettings",
    "OptimizerSettings",
    "Settings",
    "StreamSettings",
    "TrainSettings",
    "Value",
    "difference",
    "job_from_json",
    "job_to_json",
    "job_to_toml",
    "load_job",
    "nearest",
    "optimizer_of",
]
