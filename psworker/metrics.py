"""What a worker counts, for Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import protocol
from protocol.frames import VERSION
from psworker.link import Recovery

__all__ = ["Phase", "WorkerMetrics"]

Phase = Literal["data", "pull", "compute", "push"]

_SECONDS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_BOUNDS: Final = (*map(str, _SECONDS), "+Inf")

_MEASURES: Final = frozenset(
    ("loss", "accuracy", "f1", "auc", "log-loss", "mse", "rmse", "mae", "r2", "inertia")
)
"""What has a label of its own; a model of one's own may measure anything, under any name."""


class WorkerMetrics(Collector):
    """Counters of one worker, in a registry of their own.

    Attributes:
        recovery: what the client counts.
        loss: of the latest mini-batch, also where it is NaN; None: there was none yet.
        skipped: returns how many rows were left out, by reason.
        prequential: of a stream, by what they are means over, measures by name. Replaced, not changed.
        drifts: that were detected in a stream.
    """

    def __init__(self) -> None:
        self.recovery = Recovery()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.examples = Counter("psworker_examples", "Training examples processed.", registry=self.registry)
        self.steps = Counter("psworker_steps", "Mini-batches processed.", registry=self.registry)
        self.loss: float | None = None
        self.skipped: Callable[[], Mapping[str, int]] = dict
        self.prequential: Mapping[str, Mapping[str, float]] = {}
        self.drifts = Counter("psworker_drifts", "Drifts detected in the stream.", registry=self.registry)
        self._times: dict[Phase, _Times] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is looked at. Called from the thread that serves ``/metrics``."""
        recovery, loss = self.recovery, self.loss
        build = GaugeMetricFamily(
            "psworker_build_info",
            "1, for the versions of the program and of the wire protocol that it speaks.",
            labels=["version", "protocol"],
        )
        build.add_metric([protocol.__version__, str(VERSION)], 1.0)
        yield build
        if loss is not None:
            yield GaugeMetricFamily("psworker_loss", "Loss of the latest mini-batch.", value=loss)
        skipped = CounterMetricFamily("psworker_skipped_rows", "Rows left out.", labels=["reason"])
        for reason, rows in self.skipped().items():
            skipped.add_metric([reason], rows)
        yield skipped
        if self.prequential:
            yield _prequential(self.prequential)
        steps = HistogramMetricFamily(
            "psworker_step_seconds",
            "Time that the training loop spends on, or waits for, each phase of a step.",
            labels=["phase"],
        )
        for phase, times in list(self._times.items()):
            counts = accumulate(times.counts)
            steps.add_metric([phase], list(zip(_BOUNDS, counts, strict=True)), times.seconds)
        yield steps
        yield CounterMetricFamily("psworker_retries", "Requests sent again.", value=recovery.retries)
        yield CounterMetricFamily("psworker_reconnects", "Connections made anew.", value=recovery.reconnects)

    def phase(self, phase: Phase) -> _Timing:
        """Time a phase, as a context manager."""
        times = self._times.get(phase)
        if times is None:
            times = self._times[phase] = _Times()
        return _Timing(times)


class _Times:
    """How often something took how long: a histogram, of which only its own thread makes more.

    prometheus_client's own takes its locks three times for each observation, which is a part of the time
    that a step on a single example takes.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.seconds = 0.0


class _Timing:
    """One observation."""

    __slots__ = ("_began", "_times")

    def __init__(self, times: _Times) -> None:
        self._times = times

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        self._times.counts[bisect_left(_SECONDS, seconds)] += 1
        self._times.seconds += seconds


def _prequential(means: Mapping[str, Mapping[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "psworker_prequential",
        "Measures of predictions made before their label was learnt from.",
        labels=["measure", "over"],
    )
    for over, measures in means.items():
        for name in sorted(measures.keys() & _MEASURES):
            family.add_metric([name, over], measures[name])
    return family
