"""The runs of the staleness benchmark as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.staleness_table import TARGET_LOSS, Results, idle_of
from benchmarks.trial import Setting, Stragglers, Trial

# Okabe and Ito's colours, which also those tell apart who see few; the settings in their order.
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7")
_IDLE = "#D9D9D9"
_TEXT = "#222222"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "svg.hashsalt": "staleness",  # the same figures, the same file
}


def draw(results: Mapping[Stragglers, Results], path: Path) -> None:
    """Write the picture to `path`, in the format of its ending: a row for each kind of stragglers."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4 * len(results)), layout="constrained")
        rows: Any = figure.subplots(len(results), 2, width_ratios=(1.15, 1), squeeze=False)
        for (stragglers, found), (curves, bars) in zip(results.items(), rows, strict=True):
            _draw_curves(curves, stragglers, found)
            _draw_bars(bars, stragglers, found)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)


def _draw_curves(axes: Any, stragglers: Stragglers, results: Results) -> None:
    grid = np.linspace(0, stragglers.seconds, 100)
    for (setting, trials), colour in zip(results.items(), COLOURS, strict=True):
        axes.plot(grid, _median_curve(trials, grid), color=colour, linewidth=1.8, label=setting.label)
    axes.axhline(TARGET_LOSS, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(
        title=stragglers.label, xlabel="seconds", ylabel="held-out loss", xlim=(0, stragglers.seconds),
        ylim=(0, None),
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, labelspacing=0.3)


def _median_curve(trials: list[Trial], grid: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    curves = [
        np.interp(grid, [look.seconds for look in trial.looks], [look.loss for look in trial.looks])
        for trial in trials
    ]
    return np.median(curves, axis=0)


def _draw_bars(axes: Any, stragglers: Stragglers, results: Results) -> None:
    names = []
    for place, ((setting, trials), colour) in enumerate(zip(results.items(), COLOURS, strict=True)):
        idle, _ = idle_of(stragglers, trials)
        axes.barh(place, 1 - idle, color=colour, height=0.62)
        axes.barh(place, idle, left=1 - idle, color=_IDLE, height=0.62)
        axes.text(1.03, place, _staleness(setting, trials), va="center", fontsize=8)
        names.append(setting.label)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks((0, 0.5, 1), ("0 %", "50 %", "100 %"))
    axes.spines["left"].set_visible(False)
    whose = "the fast workers'" if len(set(stragglers.shares)) > 1 else "the workers'"
    axes.set_title(f"Where {whose} time goes (grey: waiting)")


def _staleness(setting: Setting, trials: list[Trial]) -> str:
    """Return the mean number of steps ahead of the slowest, or the share that was dropped."""
    if setting.backup:
        shares = [trial.dropped / (trial.dropped + trial.looks[-1].minibatches) for trial in trials]
        return f"{np.median(shares):.0%} dropped"
    return f"{np.median([trial.ahead.mean for trial in trials]):.1f} steps ahead"
