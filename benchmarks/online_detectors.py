"""How small a change of the labels each detector finds at its defaults: many streams, without a cluster.

A logistic regression learns from each stream as a worker's does, mini-batches of 32 and learning rate 0.1,
each predicted before it is learnt from. The detectors look at the same predictions; nothing is done about
what they find.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.online_streams import STREAMS, Stream
from benchmarks.progress import Progress
from psworker.data import Batch
from psworker.job import StreamSettings
from psworker.models import LogisticRegression
from psworker.models.calls import gradients_of, predictions_of
from psworker.online.drift import Watch
from psworker.online.truce import Truce

__all__ = ["CHANGES", "DETECTORS", "Change", "Found", "look", "sensitivity", "sensitivity_table"]

DETECTORS = ("adwin", "page-hinkley")
BEFORE, AFTER, QUIET = 10_000, 20_000, 100_000
"""Examples before and after a change, and of streams without one."""

_BATCH = 32
_RATE = np.float32(0.1)


@dataclass(frozen=True)
class Change:
    """What becomes of the labels: so many of them, by the examples since, are reversed; None: nothing."""

    label: str
    reversed: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]] | None


def _sudden(share: float) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
    return lambda since: np.full(len(since), share)


def _gradual(share: float, over: int) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
    return lambda since: share * np.minimum(1, since / over)


CHANGES = (
    Change("all reversed", _sudden(1.0)),
    Change("1 in 4 reversed", _sudden(0.25)),
    Change("1 in 10 reversed", _sudden(0.1)),
    Change("1 in 20 reversed", _sudden(0.05)),
    Change("all reversed, little by little over 10,000", _gradual(1.0, 10_000)),
    Change("1 in 10 reversed, little by little over 10,000", _gradual(0.1, 10_000)),
    Change("none, 100,000 examples", None),
)


@dataclass(frozen=True)
class Found:
    """What one detector has said of one stream: at how many examples since the change, below 0 before it."""

    stream: str
    change: str
    seed: int
    detector: str
    alarms: tuple[int, ...]


def sensitivity(seeds: Sequence[int], progress: Progress) -> list[Found]:
    """Look at every change of every stream, with each seed."""
    found = []
    for stream in STREAMS:
        for seed in seeds:
            progress(f"detectors on {stream.name}, seed {seed}")
            x, y = stream.rows(0, QUIET, 2 * seed)
            for change in CHANGES:
                found += look(stream, x, y, change, seed)
    return found


def look(
    stream: Stream, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], change: Change, seed: int
) -> list[Found]:
    """Learn from one stream, and return what each detector has said; `y` are the labels without a change."""
    if change.reversed is not None:
        count = min(len(x), BEFORE + AFTER)
        x, y = x[:count], y[:count]
        since = np.maximum(0, np.arange(count, dtype=np.int64) - BEFORE)
        share = np.where(np.arange(count) < BEFORE, 0, change.reversed(since))
        y = np.where(np.random.default_rng(seed).random(count) < share, 1 - y, y)
    alarms = _alarms(x, y)
    return [
        Found(stream.name, change.label, seed, name, tuple(place - BEFORE for place in alarms[name]))
        for name in DETECTORS
    ]


def _alarms(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Return after how many examples each detector has found something."""
    model = LogisticRegression(x.shape[1])
    parameters = {name: value.copy() for name, value in model.parameters().items()}
    settings = {name: StreamSettings(("-",), drift=name) for name in DETECTORS}
    truces = {name: Truce(one.cooldown, one.raised_for, 0) for name, one in settings.items()}
    watches: dict[str, Watch] = {}
    alarms: dict[str, list[int]] = {name: [] for name in DETECTORS}
    for begin in range(0, len(x), _BATCH):
        batch = Batch(x[begin : begin + _BATCH], y[begin : begin + _BATCH])
        predicted = predictions_of(model, parameters, batch)
        gradients, loss = gradients_of(model, parameters, batch)
        for name, gradient in gradients.items():
            parameters[name] -= _RATE * gradient
        examples = begin + len(batch)
        for name in DETECTORS:
            if not truces[name].watches(examples):
                continue
            watch = watches.setdefault(name, Watch(settings[name]))
            if watch.see(predicted, batch.y, loss):
                del watches[name]
                alarms[name].append(examples)
                truces[name].hear(len(alarms[name]), examples)
    return alarms


def sensitivity_table(found: Sequence[Found]) -> str:
    """Return what was found as a Markdown table."""
    heads = " | ".join(f"{name}: found | after, median (longest) | false alarms" for name in DETECTORS)
    lines = [f"| stream | change | {heads} |", f"| --- | --- |{' ---: |' * 3 * len(DETECTORS)}"]
    for stream in STREAMS:
        for change in CHANGES:
            cells = [stream.label.partition(",")[0], change.label]
            for name in DETECTORS:
                own = [
                    one.alarms
                    for one in found
                    if (one.stream, one.change, one.detector) == (stream.name, change.label, name)
                ]
                cells += _cells(own, changes=change.reversed is not None)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(runs: Sequence[tuple[int, ...]], *, changes: bool) -> list[str]:
    false = sum(1 for alarms in runs for alarm in alarms if not changes or alarm <= 0)
    if not changes:
        return ["-", "-", str(false)]
    delays = [min(alarm for alarm in alarms if alarm > 0) for alarms in runs if max(alarms, default=0) > 0]
    after = f"{statistics.median(delays):,.0f} ({max(delays):,})" if delays else "-"
    return [f"{len(delays)} of {len(runs)}", after, str(false)]
