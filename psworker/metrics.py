"""What a worker counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import protocol
from protocol.frames import VERSION
from psworker.link import Recovery

__all__ = ["Phase", "WorkerMetrics"]

Phase = Literal["data", "pull", "compute", "push"]

_SECONDS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


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
        self._step = Histogram(
            "psworker_step_seconds",
            "Time that the training loop spends on, or waits for, each phase of a step.",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
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
        yield CounterMetricFamily("psworker_retries", "Requests sent again.", value=recovery.retries)
        yield CounterMetricFamily("psworker_reconnects", "Connections made anew.", value=recovery.reconnects)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._step.labels(phase).observe(time.perf_counter() - began)


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
