"""The report of the ctr benchmark as rows, for a terminal and for Markdown, and as JSON."""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.columns import align
from benchmarks.ctr_learners.registry import ORACLE, OURS, Entry
from benchmarks.ctr_trial import Look, Report, Trial
from benchmarks.summary import summarize

TARGET_DIFFERENCE = 0.002
"""By which the log-loss of the parameter server may differ from that of one process with the same steps."""


def text_table(report: Report, target: float) -> str:
    """Return the table for a terminal."""
    return align([_heading(target), *_rows(report, target)])


def markdown_table(report: Report, target: float) -> str:
    """Return the table in Markdown."""
    heading = _heading(target)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *_rows(report, target)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(report: Report) -> Iterator[str]:
    """Yield the lines below the table: how to read it, and what follows from it."""
    yield (
        f"{report.examples:,} examples of 39 columns, read as arrays and hashed by each learner within its "
        f"clock; {report.held_out:,} held-out ones. Medians of rounds: {_rounds(report)}."
    )
    yield "With writing: the clock also runs while a learner's own text format is written from those arrays."
    difference = loss_difference(report)
    if difference is not None:
        word = "reached" if abs(difference) <= TARGET_DIFFERENCE else "missed"
        yield (
            f"asyncps against one process with the same steps: log-loss {difference:+.4f} "
            f"(target: within {TARGET_DIFFERENCE:g}: {word})."
        )
    for name, reason in report.missing.items():
        yield f"{name}: {reason}"


def loss_difference(report: Report) -> float | None:
    """Return our final log-loss minus that of the same regression in one process; None without both."""
    ours, oracle = (_trials(report, entry) for entry in (OURS, ORACLE))
    return _final(ours).loss - _final(oracle).loss if ours and oracle else None


def _trials(report: Report, wanted: Entry) -> list[Trial]:
    return next((trials for entry, trials in report.trials.items() if entry.name == wanted.name), [])


def _rounds(report: Report) -> int:
    return max((len(trials) for trials in report.trials.values()), default=0)


def _final(trials: Sequence[Trial]) -> Look:
    """Return the last look of the trial whose log-loss is in the middle."""
    return sorted((trial.looks[-1] for trial in trials), key=lambda look: look.loss)[len(trials) // 2]


def _heading(target: float) -> list[str]:
    return [
        "", "examples/s", "least - most", "with writing", f"s to {target:g}", "examples", "log-loss", "AUC",
    ]  # fmt: skip


def _rows(report: Report, target: float) -> list[list[str]]:
    """Return a row for each learner, and one for what the truth scores."""
    best = ["the true probabilities", *["-"] * 5, f"{report.best.loss:.4f}", f"{report.best.area:.4f}"]
    return [*(_row(entry, trials, target) for entry, trials in report.trials.items()), best]


def _row(entry: Entry, trials: Sequence[Trial], target: float) -> list[str]:
    speed = summarize([trial.examples_per_second for trial in trials])
    writing = median(trial.examples_per_second_with_writing for trial in trials)
    looks = [trial.reached(target) for trial in trials]
    seconds = median(math.inf if look is None else look.seconds for look in looks)
    examples = median(math.inf if look is None else look.examples for look in looks)
    final = _final(trials)
    return [
        entry.label,
        f"{speed.median:,.0f}",
        f"{speed.least:,.0f} - {speed.most:,.0f}",
        f"{writing:,.0f}",
        "-" if math.isinf(seconds) else f"{seconds:.2f}",
        "-" if math.isinf(examples) else f"{examples:,.0f}",
        f"{final.loss:.4f}",
        f"{final.area:.4f}",
    ]


def as_json(report: Report, target: float) -> dict[str, Any]:
    """Return every look of every trial, to be written as JSON."""
    return {
        "benchmark": "ctr",
        "examples": report.examples,
        "held_out": report.held_out,
        "target_loss": target,
        "best": {"loss": report.best.loss, "area": report.best.area},
        "learners": [
            {
                "name": entry.name,
                "label": entry.label,
                "trials": [
                    {"writing": trial.writing, "looks": [look._asdict() for look in trial.looks]}
                    for trial in trials
                ],
            }
            for entry, trials in report.trials.items()
        ],
        "missing": dict(report.missing),
    }
