"""Where a worker's time goes, from its metrics."""

from __future__ import annotations

import http.client
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from psctl.recording import Split

__all__ = ["fetch_split", "split_of"]

_WITHIN: Final = 0.5  # seconds


def split_of(page: str) -> Split:
    """Return the seconds by phase from a page of metrics."""
    return {
        sample.labels["phase"]: sample.value
        for family in text_string_to_metric_families(page)
        if family.name == "psworker_step_seconds"
        for sample in family.samples
        if sample.name.endswith("_sum")
    }


def fetch_split(address: str) -> Split | None:
    """Return what the worker that serves metrics at ``address`` says; None: it does not, or no longer."""
    connection = http.client.HTTPConnection(address, timeout=_WITHIN)
    try:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        page = reply.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return split_of(page) if reply.status == http.client.OK else None
