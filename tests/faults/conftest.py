import os

import pytest

from tests.faults.schedule import seed_from


@pytest.fixture
def fault_seed() -> int:
    """The seed of a test's faults: ``ASYNCPS_FAULT_SEED``, or drawn. It is shown when the test fails."""
    seed = seed_from(os.environ)
    print(f"ASYNCPS_FAULT_SEED={seed}")
    return seed
