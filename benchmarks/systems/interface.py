"""What a system must offer to be measured."""

from typing import Literal, Protocol

Operation = Literal["push", "pull", "push_pull"]
OPERATIONS: tuple[Operation, ...] = ("push", "pull", "push_pull")


class System(Protocol):
    """A server in a process of its own, and the client of it that is timed.

    A system is built, started, measured and stopped in one process that it shares with no other
    system, so it may own event loops, threads and environment variables.
    """

    def start(self) -> None:
        """Start the server and connect to it."""

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds that one operation on a float32 tensor of `nbytes` bytes takes.

        One request is outstanding at any time, for about `seconds` after a warm-up. The first
        measurement of a size is preceded by a check of what the server computes.

        Raises WrongResult where that check fails.
        """

    def stop(self) -> None:
        """End the server; may be called whether or not `start` succeeded."""
