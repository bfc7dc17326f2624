"""What the server counts, and how Prometheus is told.

Counting is a plain addition: the request path takes no lock and looks up no label. The metric families
are made when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from protocol.connection import Traffic
from protocol.errors import NotFinite

__all__ = ["Gauges", "Histogram", "ServerMetrics"]

_SECONDS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LONG_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_NOT_FINITE: Final = NotFinite.code.lower()
_STEPS: Final = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)

Gauges = Callable[[], Mapping[tuple[str, tuple[tuple[str, str], ...]], float]]
"""Returns the values of gauges at this moment, by name and labels."""


class Histogram:
    """Counts by upper bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return Prometheus's cumulative buckets, and the sum."""
        found, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found, self._sum


_NOT_LET_IN: Final = ("token", "missing", "certificate", "plain", "tls", "version", "late", "rate")
"""Why a hello may fail. Each is there from the start, or Prometheus would not see the first one as a rise."""


class ServerMetrics(Collector):
    """All that a server counts.

    Args:
        gauges: tells what is not counted but looked at.
    """

    def __init__(self, gauges: Gauges) -> None:
        self.traffic = Traffic()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.request_seconds: dict[str, Histogram] = {}
        self.updates: Counter[str] = Counter()
        self.rejected_frames: Counter[str] = Counter()
        self.failed_hellos: Counter[str] = Counter()
        self.barrier_wait = Histogram(_SECONDS)
        self.staleness = Histogram(_STEPS)
        self.updates_missed = Histogram(_STEPS)
        self.duplicates = 0
        self.dropped: Counter[str] = Counter()
        self.rows_dropped: Counter[str] = Counter()
        self.keys_refused: Callable[[], Mapping[str, int]] = dict
        self.log_fsync = Histogram(_SECONDS)
        self.checkpoint_seconds = Histogram(_LONG_SECONDS)
        self.checkpoint_failures = 0
        self.divergences: Counter[str] = Counter()
        self.log_failures: Callable[[], int] = lambda: 0
        self.worker_deaths: Callable[[], Mapping[str, int]] = dict
        self._gauges = gauges
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def request(self, op: str, status: str, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[op, status] += 1
        histogram = self.request_seconds.get(op)
        if histogram is None:
            histogram = self.request_seconds[op] = Histogram(_SECONDS)
        histogram.observe(seconds)

    def forget(self, job: str) -> None:
        """Forget what was counted of a job that has this label: it was dropped."""
        for of_jobs in (self.updates, self.dropped, self.rows_dropped, self.divergences):
            of_jobs.pop(job, None)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families. Called from the thread that serves ``/metrics``."""
        requests = {(op, status): count for (op, status), count in dict(self.requests).items()}
        yield _counter("psserver_requests", "Requests answered.", ("op", "status"), requests)
        not_finite = sum(count for (_, status), count in requests.items() if status == _NOT_FINITE)
        yield _counter("psserver_not_finite", "Requests refused for NaN or infinity.", (), {(): not_finite})
        seconds = HistogramMetricFamily(
            "psserver_request_seconds", "From the arrival of a request to its reply.", labels=["op"]
        )
        for op, histogram in dict(self.request_seconds).items():
            seconds.add_metric([op], *histogram.buckets())
        yield seconds
        yield _counter("psserver_received_bytes", "Bytes received.", (), {(): self.traffic.received})
        yield _counter("psserver_sent_bytes", "Bytes queued for sending.", (), {(): self.traffic.sent})
        yield _counter(
            "psserver_updates",
            "Updates applied: pushes, or committed steps at staleness 0.",
            ("job",),
            {(job,): count for job, count in dict(self.updates).items()},
        )
        yield _counter(
            "psserver_rejected_frames",
            "Frames that were not understood or not allowed.",
            ("reason",),
            {(reason,): count for reason, count in dict(self.rejected_frames).items()},
        )
        yield _counter(
            "psserver_failed_hellos",
            "Connections that were not greeted: who it is was not proven, or was not said in time.",
            ("reason",),
            {(reason,): count for reason, count in self._hellos().items()},
        )
        yield _histogram("psserver_barrier_wait_seconds", "Waits for the end of a step.", self.barrier_wait)
        yield _histogram(
            "psserver_staleness_steps",
            "Steps that a worker is ahead of the slowest live one as it ends a step.",
            self.staleness,
        )
        yield _histogram(
            "psserver_staleness_updates",
            "Updates by others between a worker's pull and its push.",
            self.updates_missed,
        )
        yield _counter(
            "psserver_duplicate_pushes",
            "Retried pushes that had been taken already.",
            (),
            {(): self.duplicates},
        )
        yield _counter(
            "psserver_sparse_dropped_rows",
            "Rows of sparse tables that were dropped: untouched for too long, or used least of too many.",
            ("job",),
            {(job,): count for job, count in dict(self.rows_dropped).items()},
        )
        yield _counter(
            "psserver_sparse_refused_keys",
            "Keys in pushes whose rows were not made, for they were not seen often enough.",
            ("job",),
            {(job,): count for job, count in self.keys_refused().items()},
        )
        yield _counter(
            "psserver_dropped_gradients",
            "Gradients that came too late for their step (backup workers).",
            ("job",),
            {(job,): count for job, count in dict(self.dropped).items()},
        )
        yield _histogram(
            "psserver_checkpoint_seconds",
            "Time from asking for a checkpoint until it is complete; on the coordinator only.",
            self.checkpoint_seconds,
        )
        yield _counter(
            "psserver_checkpoint_failures",
            "Checkpoints that were given up; on the coordinator only.",
            (),
            {(): self.checkpoint_failures},
        )
        yield _counter(
            "psserver_divergences",
            "Times that a job has diverged and gone back to a checkpoint; on the coordinator only.",
            ("job",),
            {(job,): count for job, count in dict(self.divergences).items()},
        )
        yield _histogram("psserver_log_fsync_seconds", "Syncs of the update log.", self.log_fsync)
        yield _counter(
            "psserver_log_failures", "Writes of the update log that failed.", (), {(): self.log_failures()}
        )
        yield _counter(
            "psserver_worker_deaths",
            "Workers that were declared dead; on the coordinator only.",
            ("job",),
            {(job,): count for job, count in self.worker_deaths().items()},
        )
        yield from self._gauge_families()

    def _hellos(self) -> dict[str, int]:
        """Return why peers were not greeted; those that said nothing were rejected, too."""
        rejected = dict(self.rejected_frames)
        silent = {"late": rejected.get("no_hello", 0), "rate": rejected.get("shut_out", 0)}
        return dict.fromkeys(_NOT_LET_IN, 0) | dict(self.failed_hellos) | silent

    def _gauge_families(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for (name, labels), value in self._gauges().items():
            if name not in families:
                families[name] = GaugeMetricFamily(name, _GAUGES[name], labels=[key for key, _ in labels])
            families[name].add_metric([text for _, text in labels], value)
        yield from families.values()


_GAUGES: Final = {
    "psserver_build_info": "1, for the versions of the program and of the wire protocol that it speaks.",
    "psserver_connections": "Open connections.",
    "psserver_shards": "Servers by state; on the coordinator only.",
    "psserver_workers": "Workers by state; on the coordinator only.",
    "psserver_worker_lag_steps": "Steps behind the furthest live worker; on the coordinator only.",
    "psserver_worker_examples_per_second": "Speed over the last heartbeats; on the coordinator only.",
    "psserver_membership_epoch": "Number of the latest membership epoch of a job.",
    "psserver_barrier_waiting_seconds": "The longest that somebody waits now for others to end a step.",
    "psserver_learning_rate_scale": "What all learning rates of a job are multiplied by.",
    "psserver_parameters_bytes": "Bytes of parameters on this shard.",
    "psserver_sparse_rows": "Rows of sparse tables on this shard.",
    "psserver_log_unwritable": "1 while updates are refused because the log cannot be written.",
    "psserver_checkpoint_last_success_timestamp_seconds": "When the last checkpoint was completed.",
    "psserver_checkpoint_every_seconds": "Time between two checkpoints; 0: they are taken on demand.",
    "psserver_checkpoint_unsaved_seconds": "Since when there is something that no checkpoint has.",
    "psserver_disk_free_bytes": "Bytes that may be used on the disk of checkpoints and update log.",
    "psserver_disk_total_bytes": "Bytes of that disk.",
    "psserver_timeline": "Number of times, from 1, that the cluster's state was taken up from a checkpoint.",
}


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, total = histogram.buckets()
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)
