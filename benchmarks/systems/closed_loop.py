"""Timing of a blocking operation, one outstanding at a time."""

from collections.abc import Callable
from time import perf_counter

from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import DenseTensor, make_gradient

# With a single one, a hiccup would be the whole figure of a slow system with a large tensor.
LEAST_OPERATIONS = 2

WARM_UP_SHARE = 0.1


def time_tensor(tensor: DenseTensor, operation: Operation, nbytes: int, seconds: float) -> float:
    """Return the mean seconds of one `operation` on `tensor`, which has `nbytes` bytes."""
    gradient = make_gradient(nbytes)
    operations: dict[Operation, Callable[[], object]] = {
        "push": lambda: tensor.push(gradient),
        "pull": tensor.pull,
        "push_pull": lambda: tensor.push_pull(gradient),
    }
    return seconds_per_operation(operations[operation], seconds)


def seconds_per_operation(
    operation: Callable[[], object], seconds: float, clock: Callable[[], float] = perf_counter
) -> float:
    """Return the mean seconds of one `operation()`, repeated for `seconds` after a warm-up."""
    _repeat(operation, 1, seconds * WARM_UP_SHARE, clock)
    return _repeat(operation, LEAST_OPERATIONS, seconds, clock)


def _repeat(operation: Callable[[], object], least: int, seconds: float, clock: Callable[[], float]) -> float:
    begin = clock()
    done = 0
    while True:
        operation()
        done += 1
        elapsed = clock() - begin
        if elapsed >= seconds and done >= least:
            return elapsed / done
