import numpy as np
import pytest

from benchmarks.paced import SLOW_SHARE, WORKER, PacedSoftmax
from psworker.data import Batch
from psworker.job import ModelSettings
from psworker.models import build_model
from psworker.models.softmax import SoftmaxRegression

BATCH = Batch(np.eye(4, 3, dtype=np.float32), np.array([0, 1, 2, 0]))


class Clock:
    """Time that passes only while somebody sleeps, and a little with each look at it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def paced(share: float, worker: int = 0, seed: int = 0) -> tuple[PacedSoftmax, Clock]:
    clock = Clock()
    environment = {SLOW_SHARE: str(share), WORKER: str(worker)}
    model = PacedSoftmax(
        3, 3, seed, pause=0.02, slowdown=5.0, environment=environment, sleep=clock.sleep, clock=clock
    )
    return model, clock


def pauses(share: float, count: int, worker: int = 0, seed: int = 0) -> list[float]:
    """How long each of `count` gradients takes."""
    model, clock = paced(share, worker, seed)
    taken = []
    for _ in range(count):
        before = clock.now
        model.gradients(model.parameters(), BATCH)
        taken.append(round(clock.now - before, 2))
    return taken


def test_gradients_and_measures_are_those_of_softmax_regression() -> None:
    model, _ = paced(0.5)
    plain = SoftmaxRegression(3, 3)
    parameters = {name: value + 0.25 for name, value in plain.parameters().items()}
    found, loss = model.gradients(parameters, BATCH)
    expected, expected_loss = plain.gradients(parameters, BATCH)
    assert loss == expected_loss
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert model.evaluate(parameters, BATCH) == plain.evaluate(parameters, BATCH)
    assert model.parameters().keys() == plain.parameters().keys()


def test_each_gradient_takes_the_pause_or_the_slowdown_times_it() -> None:
    assert pauses(share=0.0, count=20) == [0.02] * 20
    assert pauses(share=1.0, count=20) == [0.1] * 20


def test_what_the_gradient_itself_takes_is_part_of_the_pause() -> None:
    model, clock = paced(0.0)
    model.gradients(model.parameters(), BATCH)
    assert clock.slept == [pytest.approx(0.019)]


def test_a_gradient_that_takes_longer_than_the_pause_is_not_slept_after() -> None:
    clock = Clock()
    model = PacedSoftmax(3, 3, 0, 0.0005, 1.0, environment={}, sleep=clock.sleep, clock=clock)
    model.gradients(model.parameters(), BATCH)
    assert clock.slept == [0.0]


def test_a_share_of_the_gradients_is_slow() -> None:
    taken = pauses(share=0.1, count=1000)
    assert set(taken) == {0.02, 0.1}
    assert 60 < taken.count(0.1) < 140


def test_workers_are_slow_at_times_of_their_own_and_the_same_in_each_run() -> None:
    assert pauses(share=0.3, count=50, worker=1) == pauses(share=0.3, count=50, worker=1)
    assert pauses(share=0.3, count=50, worker=1) != pauses(share=0.3, count=50, worker=2)
    assert pauses(share=0.3, count=50, seed=1) != pauses(share=0.3, count=50, seed=2)


def test_a_job_can_name_it() -> None:
    settings = ModelSettings("benchmarks.paced:PacedSoftmax", (("pause", 0.0), ("slowdown", 2.0)))
    model = build_model(settings, features=3, classes=3, seed=0)
    assert model.parameters()["w"].shape == (3, 3)
