import logging
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def process_as_before() -> Iterator[None]:
    """For tests that run a daemon's ``main``, which has the logs and signals of its process to itself."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
