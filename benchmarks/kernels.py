"""Servers whose tables are computed by compiled kernels from the start: those are what is measured."""

import time
from typing import Final

from psctl import LocalCluster

_SAID: Final = "computed by"  # in the log, whether by compiled kernels or, without Numba, by NumPy
_WITHIN: Final = 120.0  # seconds; kernels that are not in the cache are compiled first
_LOOK_EVERY: Final = 0.02  # seconds


def wait_for_kernels(cluster: LocalCluster) -> None:
    """Wait until each server has said by what it computes the table that was just made.

    Raises TimeoutError where one does not.
    """
    deadline = time.monotonic() + _WITHIN
    while not all(_SAID in server.log_tail() for server in cluster.servers):
        cluster.poll()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no server had kernels for its table within {_WITHIN:.0f} s")
        time.sleep(_LOOK_EVERY)
