"""What a series of repetitions comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the extremes of some repetitions, in their own unit."""

    median: float
    least: float
    most: float


def summarize(figures: Sequence[float]) -> Summary:
    """Return the summary of `figures`, one a repetition.

    Raises ValueError where there are none.
    """
    if not figures:
        raise ValueError("figures: none given; a summary needs at least one repetition")
    return Summary(median(figures), min(figures), max(figures))


def speed_ratios(seconds: Sequence[float], ceiling: Sequence[float]) -> list[float]:
    """Return how fast each repetition was, 1.0 being as fast as the ceiling in the same round.

    Both are seconds per operation, one a round: rounds are compared each with itself because the
    speed of the machine drifts between them.

    Raises ValueError where the number of rounds differs.
    """
    if len(seconds) != len(ceiling):
        raise ValueError(f"seconds: {len(seconds)} rounds, but the ceiling has {len(ceiling)}")
    return [fastest / taken for taken, fastest in zip(seconds, ceiling, strict=True)]
