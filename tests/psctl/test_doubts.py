import math
from collections.abc import Mapping

import pytest

from protocol.status import Evaluation, Mean, Progress
from psctl.doubts import warnings_of
from psworker.job import Job, load_job

SIZES = 'numbers of column "b" are about 5e+04: set [data] scale = "standard"'
CLASSES = 'data.classes=["ham","spam"]'


def job(*settings: str) -> Job:
    return load_job(None, ("data.source=a.csv", "model.kind=linear", *settings))


def progress(
    *evaluations: Mapping[str, float], examples: int = 50, trained: int = 100, loss: float | None = 0.5
) -> Progress:
    past = tuple(
        Evaluation(epoch, examples, tuple(Mean(name, value) for name, value in means.items()))
        for epoch, means in enumerate(evaluations, 1)
    )
    return Progress("finished", 3, 3, 10, 10, 0, trained, loss, 1.0, past)


def said(now: Progress, *settings: str, sizes: str = "") -> tuple[str, ...]:
    return warnings_of(now, job(*settings), lambda: sizes)


@pytest.mark.parametrize(
    "now",
    [
        progress({"loss": 2.0, "r2": 0.1}, {"loss": 1.0, "r2": 0.5}),
        progress({"loss": 1.0, "r2": 0.9}, {"loss": 1.9, "r2": 0.8}),  # it overfits
        progress({"loss": -5.0}, {"loss": -3.0}),
        progress(),
        progress({"loss": 0.6, "log-loss": 0.6, "accuracy": 0.7, "auc": 0.8}),
    ],
)
def test_of_a_good_model_nothing_is_said_nor_looked_up(now: Progress) -> None:
    assert warnings_of(now, job(CLASSES), lambda: pytest.fail("looked up")) == ()


def test_worse_than_the_mean() -> None:
    first, remedy = said(progress({"loss": 3.0, "r2": -468.0}))
    assert first == "r2 is -468.0000: the mean of the labels predicts the held-out rows better"
    for hint in ("lower [optimizer] lr", '[data] scale = "standard"', "clip-norm"):
        assert hint in remedy


def test_a_loss_that_has_risen() -> None:
    rising = progress({"loss": 1.0}, {"loss": 0.5}, {"loss": 3e7})
    assert said(rising)[0] == "the held-out loss has risen from 1.0000 to 3.000e+07"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number(loss: float) -> None:
    assert said(progress(loss=loss))[0] == f"the loss is {loss}"
    assert f"the loss is {loss}" in said(progress({"loss": loss}))


@pytest.mark.parametrize(
    ("settings", "means", "words"),
    [
        ([CLASSES], {"log-loss": 0.7, "auc": 0.6}, "0.7000: to give all classes the same chance has 0.6931"),
        ([], {"log-loss": 0.7, "auc": 0.6}, "has 0.6931"),
        (['data.classes=["a","b","c"]'], {"log-loss": 1.2}, "has 1.0986"),
    ],
)  # fmt: skip
def test_worse_than_knowing_nothing(settings: list[str], means: dict[str, float], words: str) -> None:
    assert said(progress(means), *settings)[0].endswith(words)
    assert said(progress(means | {"log-loss": 0.6}), *settings) == ()


def test_large_columns_are_said_first_and_scaling_once() -> None:
    _, sizes, remedy = said(progress({"r2": -1.0}), sizes=SIZES)
    assert sizes == SIZES
    assert "scale" not in remedy
    assert "scale" not in said(progress({"r2": -1.0}), "data.scale=standard")[-1]


def test_what_still_learns_needs_no_lower_rate() -> None:
    falling = progress({"loss": 9.0, "r2": -8.0}, {"loss": 8.0, "r2": -7.0}, {"loss": 7.0, "r2": -6.0})
    assert said(falling)[1:] == (
        "the loss was still falling: train for more [train] epochs, or with a higher [optimizer] lr",
    )


def test_what_there_were_no_rows_for() -> None:
    assert said(progress({"loss": 1.0}, trained=0)) == (
        "no row was trained on: all are held out ([eval] holdout), or were left out",
    )
    (nothing_held_out,) = said(progress({}, examples=0))
    assert "raise [eval] holdout" in nothing_held_out
    (one_class,) = said(progress({"loss": 0.1, "log-loss": 0.1, "accuracy": 1.0}), CLASSES)
    assert "of one class" in one_class


def test_models_of_ones_own_need_not_say_their_auc() -> None:
    assert said(progress({"loss": 0.1, "accuracy": 0.9}), CLASSES, "model.kind=mine:Model") == ()


def test_a_loss_that_was_0_may_rise_a_little() -> None:
    assert said(progress({"loss": 0.0}, {"loss": 1e-5})) == ()
