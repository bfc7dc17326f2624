"""Look at a daemon from outside, as Prometheus and load balancers do."""

import http.client
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


def get(address: str, path: str) -> tuple[int, str]:
    """Return status and body of an HTTP GET."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Metrics:
    """What ``/metrics`` of a daemon says."""

    def __init__(self, address: str) -> None:
        status, text = get(address, "/metrics")
        assert status == 200
        self._samples: dict[tuple[str, Labels], float] = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; KeyError if there is none."""
        return self._samples[name, tuple(sorted(labels.items()))]

    def labels(self, name: str) -> set[Labels]:
        """Return the label sets that a metric has."""
        return {labels for sample, labels in self._samples if sample == name}

    def names(self) -> set[str]:
        """Return the names of all samples."""
        return {name for name, _ in self._samples}


def total(metrics: list[Metrics], name: str, **labels: str) -> float:
    """Return the sum of a sample over servers; servers without it count as 0."""
    wanted: Mapping[str, str] = labels
    return sum(
        one.value(name, **wanted) for one in metrics if tuple(sorted(wanted.items())) in one.labels(name)
    )
