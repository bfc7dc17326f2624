"""What the metrics ports of servers and workers say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True)
class Observed:
    """A histogram: how many values, their mean, and the least bound that none is above (or infinity)."""

    count: int
    mean: float
    most: float


def scrape(address: str) -> str:
    """Return the metrics page of the daemon whose metrics port is at `address`, a `HOST:PORT`."""
    with urlopen(f"http://{address}/metrics", timeout=5.0) as answer:
        page: bytes = answer.read()
    return page.decode()


def counter(page: str, name: str) -> float:
    """Return the counter `name` (without `_total`) of a page.

    Raises KeyError where the page has none of that name.
    """
    return next(sample.value for sample in _samples(page, name) if sample.name == f"{name}_total")


def histogram(page: str, name: str) -> Observed:
    """Return the histogram `name` of a page; without labels, and of zeros while nothing was observed.

    Raises KeyError where the page has none of that name.
    """
    samples = _samples(page, name)
    count = next(sample.value for sample in samples if sample.name == f"{name}_count")
    total = next(sample.value for sample in samples if sample.name == f"{name}_sum")
    buckets = {
        float(sample.labels["le"]): sample.value for sample in samples if sample.name == f"{name}_bucket"
    }
    most = min(bound for bound, below in buckets.items() if below == count) if count else 0.0
    return Observed(int(count), total / count if count else 0.0, most)


def seconds_by_phase(page: str) -> Mapping[str, float]:
    """Return the seconds that a worker's training loop has spent in each phase of its steps."""
    name = "psworker_step_seconds"
    return {
        sample.labels["phase"]: sample.value
        for sample in _samples(page, name)
        if sample.name == f"{name}_sum"
    }


def format_bound(most: float, largest: float = 100.0) -> str:
    """Return the bound of a histogram's values as text."""
    return f"> {largest:g}" if math.isinf(most) else f"{most:g}"


def _samples(page: str, name: str) -> list[Sample]:
    for family in text_string_to_metric_families(page):
        if family.name == name:
            return list(family.samples)
    raise KeyError(name)
