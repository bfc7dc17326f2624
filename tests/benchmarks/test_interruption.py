import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.benchmarks.processes import all_ended, spawned_by


@contextmanager
def benchmark_under_way() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run that would take long, and the children of a system that has been measured once."""
    arguments = ["dense", "--systems", "raw-tcp", "--sizes", "1KB", "--repeat", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments, "--seconds", "0.1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "1 KB pull" in line:
                break
        try:
            yield process, spawned_by(process.pid)
        finally:
            process.kill()


@pytest.mark.long
def test_interrupt_ends_the_children_and_says_so_in_the_status() -> None:
    with benchmark_under_way() as (process, children):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert len(children) == 2
    assert all_ended(children)


def test_children_end_with_a_parent_that_is_killed() -> None:
    with benchmark_under_way() as (process, children):
        process.kill()
        process.wait(60)
    assert len(children) == 2
    assert all_ended(children)
