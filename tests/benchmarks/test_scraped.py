import math

import pytest
from prometheus_client import generate_latest

from benchmarks.scraped import Observed, format_bound, histogram, scrape, seconds_by_phase
from psctl import LocalCluster
from psserver.metrics import ServerMetrics
from psworker.metrics import WorkerMetrics


def server_page(*ahead: float) -> str:
    metrics = ServerMetrics(dict)
    for value in ahead:
        metrics.staleness.observe(value)
    return generate_latest(metrics.registry).decode()


def test_mean_count_and_least_bound_of_what_a_server_has_observed() -> None:
    assert histogram(server_page(0, 2, 4), "psserver_staleness_steps") == Observed(3, 2.0, 5.0)


def test_values_on_a_bound_are_not_above_it() -> None:
    assert histogram(server_page(3, 3), "psserver_staleness_steps") == Observed(2, 3.0, 3.0)


def test_values_above_all_bounds_have_none() -> None:
    found = histogram(server_page(1, 1000), "psserver_staleness_steps")
    assert found.most == math.inf
    assert format_bound(found.most) == "> 100"
    assert format_bound(30.0) == "30"


def test_nothing_observed_is_zeros() -> None:
    assert histogram(server_page(), "psserver_staleness_steps") == Observed(0, 0.0, 0.0)


def test_a_histogram_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="psserver_nothing"):
        histogram(server_page(), "psserver_nothing")


def test_seconds_of_each_phase_of_a_worker() -> None:
    metrics = WorkerMetrics()
    for _ in range(2):
        with metrics.phase("push"):
            pass
    with metrics.phase("compute"):
        pass
    page = generate_latest(metrics.registry).decode()
    found = seconds_by_phase(page)
    assert found.keys() == {"push", "compute"}
    samples = [line.split() for line in page.splitlines()]
    written = next(sample[1] for sample in samples if sample[0] == 'psworker_step_seconds_sum{phase="push"}')
    assert found["push"] == float(written) > 0


def test_a_worker_without_a_step_has_spent_nothing() -> None:
    assert seconds_by_phase(generate_latest(WorkerMetrics().registry).decode()) == {}


def test_a_real_server_can_be_asked() -> None:
    with LocalCluster() as cluster:
        page = scrape(cluster.metrics[0])
    assert histogram(page, "psserver_staleness_updates").count == 0
