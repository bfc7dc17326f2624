"""One training of an experiment: a local cluster from the first example to its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from psctl import LocalCluster
from psctl.recording import Recording
from psctl.trial import run_trial
from psworker.job import load_job


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained: settings of the job as `section.key=value`, and on how many servers and workers."""

    label: str
    overrides: tuple[str, ...]
    workers: int = 2
    servers: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one training.

    `curves` has (epoch, value) of each measure of the held-out data, `split` the seconds that the workers
    spent on average in each phase of a step, `seconds` and `examples` are of the whole training.
    """

    seed: int
    seconds: float
    examples: int
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    split: Mapping[str, float]

    def last(self, measure: str) -> float:
        """Return a measure after the last epoch."""
        return self.curves[measure][-1][1]

    @property
    def examples_per_second(self) -> float:
        """Training examples in a second, by all workers."""
        return self.examples / self.seconds


Results = Mapping[Setting, Sequence[Trial]]


def run(setting: Setting, data: Path, seed: int) -> Trial:
    """Train on the CSV file `data` and return what came of it.

    Raises:
        ProcessFailed: a process of the cluster ended.
        PSError: the cluster does not say what came of it.
    """
    overrides = (
        f'data.source="{data}"', "data.target=label", f"job.seed={seed}", "job.name=experiment",
        *setting.overrides,
    )  # fmt: skip
    job = load_job(None, (*overrides, f"train.workers={setting.workers}"))
    recording = Recording()
    cluster = LocalCluster(setting.servers, setting.workers, overrides=overrides)
    result = run_trial(cluster, job, recording)
    assert recording.progress is not None
    curves: dict[str, list[tuple[float, float]]] = {}
    for evaluation in recording.progress.evaluations:
        for mean in evaluation.means:
            curves.setdefault(mean.name, []).append((float(evaluation.epoch), mean.value))
    return Trial(
        seed=seed,
        seconds=result.seconds,
        examples=result.examples,
        curves={name: tuple(points) for name, points in curves.items()},
        split=_mean_split(list(recording.splits.values())),
    )


def _mean_split(splits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    phases = dict.fromkeys(phase for split in splits for phase in split)
    return {phase: fmean(split.get(phase, 0.0) for split in splits) for phase in phases}
