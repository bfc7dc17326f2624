import gc
import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.forks import forked_daemons

# How long an example takes says how busy the machine is. Each run draws others: half as many are enough.
settings.register_profile(
    "untimed", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

# Nothing that is made while tests are imported and collected is garbage, and it is a great deal: whoever
# looks for garbage, as some tests do themselves, is not to look through all of that each time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def daemons_are_forked() -> Iterator[None]:
    with forked_daemons():
        yield


@pytest.fixture
def process_as_before() -> Iterator[None]:
    """For tests that run a daemon's ``main``, which has the logs and signals of its process to itself."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
