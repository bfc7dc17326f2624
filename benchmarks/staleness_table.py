"""The runs of the staleness benchmark as rows, for a terminal and for Markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.columns import align
from benchmarks.scraped import Observed, format_bound
from benchmarks.summary import summarize
from benchmarks.trial import Setting, Stragglers, Trial

Results = Mapping[Setting, list[Trial]]
"""The runs of each setting under one kind of stragglers."""

TARGET_LOSS = 0.5


def text_table(stragglers: Stragglers, results: Results) -> str:
    """Return a table for a terminal."""
    return align([_heading(stragglers), *_rows(stragglers, results)])


def markdown_table(stragglers: Stragglers, results: Results) -> str:
    """Return a table in Markdown."""
    heading = _heading(stragglers)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *_rows(stragglers, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def idle_of(stragglers: Stragglers, trials: Sequence[Trial]) -> tuple[float, float | None]:
    """Return the idle share of the workers that are slow least, and of the others if there are any."""
    least = min(stragglers.shares)
    fast = [number for number, share in enumerate(stragglers.shares) if share == least]
    slow = [number for number, share in enumerate(stragglers.shares) if share > least]
    return _idle(trials, fast), _idle(trials, slow) if slow else None


def _idle(trials: Sequence[Trial], workers: Sequence[int]) -> float:
    return summarize([fmean(trial.idle[worker] for worker in workers) for trial in trials]).median


def _heading(stragglers: Stragglers) -> list[str]:
    idle = ["fast idle", "slow idle"] if len(set(stragglers.shares)) > 1 else ["idle"]
    return [
        "", f"s to loss {TARGET_LOSS:g}", "least - most", "mini-batches", "per s", *idle,
        "ahead", "at most", "missed", "at most", "dropped",
    ]  # fmt: skip


def _rows(stragglers: Stragglers, results: Results) -> list[list[str]]:
    return [_row(stragglers, setting, trials) for setting, trials in results.items()]


def _row(stragglers: Stragglers, setting: Setting, trials: Sequence[Trial]) -> list[str]:
    looks = [trial.reached(TARGET_LOSS) for trial in trials]
    seconds = summarize([math.inf if look is None else look.seconds for look in looks])
    minibatches = summarize([math.inf if look is None else look.minibatches for look in looks]).median
    speed = summarize([trial.minibatches_per_second for trial in trials]).median
    fast, slow = idle_of(stragglers, trials)
    return [
        setting.label,
        _seconds(seconds.median, stragglers),
        f"{_seconds(seconds.least, stragglers)} - {_seconds(seconds.most, stragglers)}",
        "-" if math.isinf(minibatches) else f"{minibatches:.0f}",
        f"{speed:.0f}",
        f"{fast:.0%}",
        *([] if slow is None else [f"{slow:.0%}"]),
        *_observed([trial.ahead for trial in trials]),
        *_observed([trial.missed for trial in trials]),
        f"{summarize([_dropped_share(trial) for trial in trials]).median:.0%}",
    ]


def _seconds(seconds: float, stragglers: Stragglers) -> str:
    return f"> {stragglers.seconds:g}" if math.isinf(seconds) else f"{seconds:.1f}"


def _observed(series: Sequence[Observed]) -> list[str]:
    """Return mean and bound; dashes where nothing is observed, as with updates missed in lockstep."""
    if not any(one.count for one in series):
        return ["-", "-"]
    mean = summarize([one.mean for one in series]).median
    return [f"{mean:.1f}", format_bound(max(one.most for one in series))]


def _dropped_share(trial: Trial) -> float:
    return trial.dropped / (trial.dropped + trial.looks[-1].minibatches)
