"""What a system must offer to be measured."""

from typing import Literal, Protocol, TypeVar

Operation = Literal["push", "pull", "push_pull"]
OPERATIONS: tuple[Operation, ...] = ("push", "pull", "push_pull")

Figure_co = TypeVar("Figure_co", covariant=True)


class System(Protocol[Figure_co]):
    """A server in a process of its own, and the client of it that is timed.

    A system is built, started, measured and stopped in one process that it shares with no other
    system, so it may own event loops, threads and environment variables. What a figure is, is the
    benchmark's own: mostly the mean seconds of one operation.
    """

    def start(self) -> None:
        """Start the server and connect to it."""

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Figure_co:
        """Return the figure of `operation` on `nbytes` bytes, a float32 tensor or a batch of rows.

        One request is outstanding at any time, for about `seconds` after a warm-up. The first
        measurement of a size is preceded by a check of what the server computes.

        Raises WrongResult where that check fails.
        """

    def stop(self) -> None:
        """End the server; may be called whether or not `start` succeeded."""
