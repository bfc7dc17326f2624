import math

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import protocol
from protocol.frames import VERSION
from psworker.link import Recovery
from psworker.metrics import WorkerMetrics


def samples(metrics: WorkerMetrics) -> dict[str, float]:
    text = generate_latest(metrics.registry).decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_names_that_dashboards_know() -> None:
    metrics = WorkerMetrics()
    metrics.examples.inc(64)
    metrics.steps.inc()
    metrics.loss = 0.25
    with metrics.phase("compute"):
        pass
    found = samples(metrics)
    assert found["psworker_examples_total"] == 64
    assert found["psworker_steps_total"] == 1
    assert found["psworker_loss"] == 0.25
    assert found["psworker_step_seconds_count compute"] == 1


def test_the_times_of_a_phase_are_a_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = WorkerMetrics()
    clock = iter([0.0, 0.002, 1.0, 1.003, 5.0, 25.0])
    monkeypatch.setattr("psworker.metrics.time.perf_counter", lambda: next(clock))
    for _ in range(3):
        with metrics.phase("pull"):
            pass
    found = samples(metrics)
    buckets = [
        found[f"psworker_step_seconds_bucket {bound} pull"] for bound in ("0.001", "0.01", "10.0", "+Inf")
    ]
    assert buckets == [0, 2, 2, 3]
    assert found["psworker_step_seconds_count pull"] == 3
    assert found["psworker_step_seconds_sum pull"] == pytest.approx(20.005)


def test_there_is_no_loss_before_the_first_and_it_may_be_nan() -> None:
    metrics = WorkerMetrics()
    assert "psworker_loss" not in samples(metrics)
    metrics.loss = math.nan
    assert math.isnan(samples(metrics)["psworker_loss"])


def test_rows_that_were_left_out_are_told_by_reason() -> None:
    metrics = WorkerMetrics()
    assert not any(name.startswith("psworker_skipped_rows_total") for name in samples(metrics))
    skipped = {"number": 3}
    metrics.skipped = lambda: skipped
    skipped["missing"] = 1
    found = samples(metrics)
    assert found["psworker_skipped_rows_total number"] == 3
    assert found["psworker_skipped_rows_total missing"] == 1


def test_measures_of_a_stream_have_few_labels() -> None:
    metrics = WorkerMetrics()
    metrics.prequential = {"window": {"accuracy": 0.5, "a user's own": 1.0}, "whole": {"accuracy": 0.25}}
    metrics.drifts.inc()
    found = samples(metrics)
    assert found["psworker_prequential accuracy window"] == 0.5
    assert found["psworker_prequential accuracy whole"] == 0.25
    assert found["psworker_drifts_total"] == 1
    assert not any("own" in name for name in found)


def test_the_versions_are_told() -> None:
    assert samples(WorkerMetrics())[f"psworker_build_info {VERSION} {protocol.__version__}"] == 1


def test_a_phase_that_fails_is_timed_too() -> None:
    metrics = WorkerMetrics()
    with pytest.raises(ZeroDivisionError), metrics.phase("data"):
        raise ZeroDivisionError
    assert samples(metrics)["psworker_step_seconds_count data"] == 1


def test_what_it_took_to_go_on_is_what_the_client_counts() -> None:
    metrics = WorkerMetrics()
    metrics.recovery = Recovery(reconnects=3, retries=5)
    found = samples(metrics)
    assert (found["psworker_reconnects_total"], found["psworker_retries_total"]) == (3, 5)
    metrics.recovery.retries += 1
    assert samples(metrics)["psworker_retries_total"] == 6


def test_two_workers_of_a_process_count_apart() -> None:
    one, other = WorkerMetrics(), WorkerMetrics()
    one.steps.inc()
    assert (samples(one)["psworker_steps_total"], samples(other)["psworker_steps_total"]) == (1, 0)
