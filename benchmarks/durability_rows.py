"""What the durability benchmark has found: one row a figure, beside its target where there is one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.columns import align
from benchmarks.summary import summarize

_HEADER = ["target", "median", "least - most"]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, one value a round.

    `unit` is what the values are printed with; they are printed divided by `scale`. `at_most` and `at_least`
    are the target of their median, if it has one.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    scale: float = 1.0
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the median is where it should be; a row without a target is content with anything."""
        median = summarize(self.values).median
        return (self.at_most is None or median <= self.at_most) and (
            self.at_least is None or median >= self.at_least
        )


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a part of the benchmark, and what has to be known to read them."""

    title: str
    rows: tuple[Row, ...]
    remark: str = ""


def render_text(tables: Sequence[Table]) -> str:
    """Return the tables for people."""
    return "\n\n".join(_render(table) for table in tables)


def _render(table: Table) -> str:
    lines = [[table.title, *_HEADER], *(_line(row) for row in table.rows)]
    return align(lines) + (f"\n{table.remark}" if table.remark else "")


def _line(row: Row) -> list[str]:
    found = summarize(row.values)
    median, least, most = (_number(value / row.scale) for value in (found.median, found.least, found.most))
    unit = f" {row.unit}" if row.unit else ""
    missed = "" if row.is_met else " (missed)"
    return [row.label, _target(row), f"{median}{unit}{missed}", f"{least} - {most}"]


def _target(row: Row) -> str:
    if row.at_most is not None:
        return f"<= {_number(row.at_most / row.scale)}"
    return "" if row.at_least is None else f">= {_number(row.at_least / row.scale)}"


def _number(value: float) -> str:
    """Return a number with three digits that matter, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return every round's figures, to be written as JSON; in seconds and bytes, whatever is printed."""
    return [
        {
            "part": table.title,
            "figures": [{**asdict(row), "met": row.is_met} for row in table.rows],
        }
        for table in tables
    ]
