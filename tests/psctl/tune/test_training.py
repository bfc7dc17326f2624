import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadRequest
from protocol.status import ClusterStatus, Evaluation, Mean
from psctl import LocalCluster, ProcessFailed
from psctl.tune import training
from psctl.tune.space import Settings
from psctl.tune.training import Stopped, Trainer

SETTINGS: Settings = (("optimizer.lr", 0.25), ("train.epochs", 10))


class Started:
    """Clusters of fake daemons in place of those of trials, and what each was asked to train."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, make: Callable[..., LocalCluster], make_status: Any
    ) -> None:
        self.workers: Iterator[str] = iter(())
        self.losses: Iterator[float] = iter(())
        self.clusters: list[LocalCluster] = []
        self.jobs: list[tuple[Path | None, tuple[str, ...]]] = []

        def cluster(servers: int, workers: int, job: Path | None, overrides: tuple[str, ...]) -> LocalCluster:
            self.jobs.append((job, tuple(overrides)))
            self.clusters.append(make(servers, workers, worker=next(self.workers, "0")))
            return self.clusters[-1]

        async def fetch(host: str, port: int) -> ClusterStatus:
            self.on_look()
            means = (Mean("loss", next(self.losses)), Mean("accuracy", 0.5))
            status: ClusterStatus = make_status(phase="finished", evaluations=(Evaluation(10, 100, means),))
            return status

        monkeypatch.setattr(training, "LocalCluster", cluster)
        monkeypatch.setattr("psctl.trial.fetch_status", fetch)

    def on_look(self) -> None:
        """Do nothing when a training is looked at."""


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch,
    fake_cluster: Callable[..., LocalCluster],
    make_status: Callable[..., ClusterStatus],
) -> Started:
    return Started(monkeypatch, fake_cluster, make_status)


def trainer(*, folds: int = 0, measure: str = "loss") -> Trainer:
    seconds = iter(range(100))
    return Trainer(None, ("job.seed=7",), 1, 1, folds, measure, clock=lambda: float(next(seconds)))


def test_a_trial_is_a_training_with_its_settings(started: Started) -> None:
    started.losses = iter(lambda: 0.125, None)
    trial = trainer().run(4, SETTINGS, threading.Event())
    assert (trial.number, trial.settings) == (4, {"optimizer.lr": 0.25, "train.epochs": 10})
    assert (trial.value, trial.folds, trial.seconds) == (0.125, (0.125,), 1.0)
    assert started.jobs == [(None, ("job.seed=7", "optimizer.lr=0.25", "train.epochs=10"))]


def test_each_fold_is_held_out_once(started: Started) -> None:
    started.losses = iter(lambda: float(len(started.jobs)), None)
    trial = trainer(folds=3).run(1, SETTINGS, threading.Event())
    assert [overrides[-1] for _, overrides in started.jobs] == [f"eval.fold={n}/3" for n in (1, 2, 3)]
    assert (trial.folds, trial.value, trial.deviation) == ((1.0, 2.0, 3.0), 2.0, 1.0)


def test_what_diverges_is_over_with_its_first_such_fold(started: Started) -> None:
    started.losses = iter(lambda: 0.5, None)
    started.workers = iter(["0", "16"])
    trial = trainer(folds=3).run(1, SETTINGS, threading.Event())
    assert (trial.value, len(trial.folds), len(started.jobs)) == (None, 2, 2)


@pytest.mark.parametrize("code", ["2", "14", "1"])
def test_another_failure_is_the_search_s(started: Started, code: str) -> None:
    started.losses = iter(lambda: 0.5, None)
    started.workers = iter([code])
    at_work = trainer()
    with pytest.raises(ProcessFailed, match=f"worker-0 ended with exit code {code}"):
        at_work.run(1, SETTINGS, threading.Event())
    assert at_work.running == {}


def test_a_measure_that_is_none_is_named_with_those_there_are(started: Started) -> None:
    started.losses = iter(lambda: 0.5, None)
    with pytest.raises(BadRequest, match="loss, accuracy") as refused:
        trainer(measure="auc").run(1, SETTINGS, threading.Event())
    assert refused.value.value == "auc"


def test_a_search_that_is_over_stops_the_cluster(started: Started) -> None:
    started.losses = iter(lambda: 0.5, None)
    started.workers = iter(["wait"])
    stop = threading.Event()
    started.on_look = stop.set  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer().run(1, SETTINGS, stop)
    (cluster,) = started.clusters
    assert all(child.returncode is not None for child in (*cluster.workers, *cluster.servers))


def test_what_is_over_before_it_began_starts_nothing(started: Started) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        trainer().run(1, SETTINGS, stop)
    assert all(cluster.servers == () for cluster in started.clusters)
