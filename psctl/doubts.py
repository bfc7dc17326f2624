"""What is wrong with a model whose training has ended as if all were well, and what may help. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from protocol.status import Evaluation, Progress
from psctl.figures import figure
from psworker.job import Job

__all__ = ["warnings_of"]

_RISEN: Final = 2.0
"""Times the first held-out loss: what overfits seldom gets that far, and what runs away soon does."""


def warnings_of(progress: Progress, job: Job, unscaled: Callable[[], str]) -> tuple[str, ...]:
    """Return what has to be said of a finished job; nothing if the model is any good.

    Args:
        progress: how it has ended.
        job: what was trained.
        unscaled: says what is wrong with the sizes of the columns, or ""; called if anything is wrong.
    """
    found = tuple(_bad_fit(progress, job))
    remedies = _remedies(progress, job, unscaled()) if found else ()
    return (*_nothing_to_go_by(progress, job), *found, *remedies)


def _nothing_to_go_by(progress: Progress, job: Job) -> Iterator[str]:
    """Yield what there were no rows for."""
    if not progress.train_examples:
        yield "no row was trained on: all are held out ([eval] holdout), or were left out"
    last = progress.evaluations[-1:]
    if any(not one.examples for one in last):
        yield "no row was held out, so nothing says how good the model is: raise [eval] holdout, or add rows"
    elif _is_binary(job) and "accuracy" in _means(last) and "auc" not in _means(last):
        yield "all rows held out are of one class, so accuracy says nothing: see that the data has both"


def _is_binary(job: Job) -> bool:
    """Whether a built-in model tells two classes apart; those of one's own need not say their AUC."""
    return len(job.data.classes) == 2 and ":" not in job.model.kind


def _bad_fit(progress: Progress, job: Job) -> Iterator[str]:
    first, last = _means(progress.evaluations[:1]), _means(progress.evaluations[-1:])
    loss = last.get("loss", progress.train_loss)
    if loss is not None and not math.isfinite(loss):
        yield f"the loss is {loss}"
    if last.get("r2", 0.0) < 0:
        yield f"r2 is {figure(last['r2'])}: the mean of the labels predicts the held-out rows better"
    classes = len(job.data.classes) or (2 if "auc" in last else 0)
    if classes > 1 and last.get("log-loss", 0.0) > math.log(classes):
        blind = figure(math.log(classes))
        yield f"log-loss is {figure(last['log-loss'])}: to give all classes the same chance has {blind}"
    before, after = first.get("loss", math.nan), last.get("loss", math.nan)
    if before and after - before > (_RISEN - 1) * abs(before):
        yield f"the held-out loss has risen from {figure(before)} to {figure(after)}"


def _means(evaluations: Sequence[Evaluation]) -> Mapping[str, float]:
    return {mean.name: mean.value for one in evaluations for mean in one.means}


def _remedies(progress: Progress, job: Job, unscaled: str) -> Iterator[str]:
    if unscaled:
        yield unscaled
    if _still_falls(progress.evaluations):
        yield "the loss was still falling: train for more [train] epochs, or with a higher [optimizer] lr"
        return
    scale = "" if unscaled or job.data.scale != "none" else ', scale the columns ([data] scale = "standard")'
    yield f"lower [optimizer] lr{scale}, or limit gradients with [optimizer] clip-norm"


def _still_falls(evaluations: Sequence[Evaluation]) -> bool:
    """Whether each of the last evaluations was better than the one before."""
    losses = [_means((one,)).get("loss", math.nan) for one in evaluations[-3:]]
    return len(losses) > 1 and all(after < before for before, after in pairwise(losses))
