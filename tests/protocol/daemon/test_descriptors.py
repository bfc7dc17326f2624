import resource
import subprocess
import sys
from collections.abc import Sequence

import pytest

from protocol.daemon.descriptors import allow_descriptors


def allowed(limits: tuple[int, int], wanted: int) -> Sequence[int]:
    """Return what a process with these limits is allowed, and its limits afterwards."""
    script = (
        "import resource; from protocol.daemon.descriptors import allow_descriptors;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits});"
        f"print(allow_descriptors({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [int(number) for number in answer.stdout.split()]


@pytest.mark.parametrize(
    ("limits", "wanted", "expected"),
    [
        ((100, 1000), 500, [500, 500, 1000]),
        ((100, 1000), 5000, [1000, 1000, 1000]),
        ((600, 1000), 500, [600, 600, 1000]),
    ],
    ids=["as wanted", "as far as it goes", "enough already"],
)
def test_the_limit_is_raised_as_far_as_the_system_allows(
    limits: tuple[int, int], wanted: int, expected: list[int]
) -> None:
    assert allowed(limits, wanted) == expected


def test_a_process_that_has_no_limit_has_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert allow_descriptors(10**6) == 10**6


def test_a_system_that_allows_less_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert allow_descriptors(1000) == 256
