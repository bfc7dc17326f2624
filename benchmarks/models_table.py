"""What came of each model beside its reference, as rows for a terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.columns import align
from benchmarks.models_cases import Case
from benchmarks.models_choice import Choice, Settings

MAY_BE_WORSE = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """A measure of the test rows: the reference's, and ours at staleness 0 and without any bound."""

    case: Case
    choice: Choice
    reference: float
    synchronous: float
    asynchronous: float

    @property
    def worse(self) -> float:
        """By which part of the reference's the worse of ours is worse; negative: both are better."""
        ours = (self.synchronous, self.asynchronous)
        if self.case.measure.more_is_better:
            return (self.reference - min(ours)) / abs(self.reference)
        return (max(ours) - self.reference) / abs(self.reference)

    @property
    def is_off(self) -> bool:
        """Whether that is too much."""
        return not self.worse <= MAY_BE_WORSE


def text_table(outcomes: Sequence[Outcome]) -> str:
    """Return a table for a terminal."""
    return align([_HEADING, *(_row(outcome) for outcome in outcomes)])


def markdown_table(outcomes: Sequence[Outcome]) -> str:
    """Return a table in Markdown."""
    numbers = ["---:"] * 4
    lines = [_HEADING, ["---"] * 6 + numbers, *(_row(outcome) for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_HEADING = [
    "model",
    "data",
    "beside",
    "both have",
    "ours has",
    "measure",
    "its",
    "staleness 0",
    "inf",
    "worse by",
]


def _row(outcome: Outcome) -> list[str]:
    case = outcome.case
    figures = (outcome.reference, outcome.synchronous, outcome.asynchronous)
    return [
        case.label, case.data, case.reference_name, _shown(outcome.choice.both), _shown(outcome.choice.ours),
        case.measure.name,
        *(f"{figure:.4f}" for figure in figures), f"{outcome.worse:+.2%}",
    ]  # fmt: skip


def _shown(settings: Settings) -> str:
    """Return settings as short as a column is."""
    return ", ".join(f"{name.rpartition('.')[2]} {value:g}" for name, value in settings.items()) or "-"
