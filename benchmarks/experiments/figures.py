"""What experiments write and draw alike."""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.experiments.trials import Results, Trial

# Okabe and Ito's colours, which also those tell apart who see few.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")


def mean(trials: Sequence[Trial], measure: str) -> float:
    """Return the mean over the seeds of a measure after the last epoch."""
    return fmean(trial.last(measure) for trial in trials)


def spread(trials: Sequence[Trial], measure: str, digits: int = 3) -> str:
    """Return the mean over the seeds, and the least and the most where there are several."""
    found = [trial.last(measure) for trial in trials]
    text = f"{fmean(found):.{digits}f}"
    return text if len(found) == 1 else f"{text} ({min(found):.{digits}f} - {max(found):.{digits}f})"


def speed(trials: Sequence[Trial]) -> str:
    """Return the mean of the examples in a second."""
    return f"{fmean(trial.examples_per_second for trial in trials):,.0f}"


def mean_curve(trials: Sequence[Trial], measure: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the epochs, and the mean over the seeds of a measure after each."""
    epochs = np.array([epoch for epoch, _ in trials[0].curves[measure]])
    return epochs, np.mean([[value for _, value in trial.curves[measure]] for trial in trials], axis=0)


def draw_curves(axes: Any, results: Results, measure: str, *, title: str) -> None:
    """Draw a measure by epoch, a line for each setting."""
    for (setting, trials), colour in zip(results.items(), cycle(COLOURS), strict=False):
        axes.plot(*mean_curve(trials, measure), color=colour, linewidth=1.8, label=setting.label)
    axes.set(title=title, xlabel="epoch", ylabel=f"held-out {measure}")
    axes.legend(frameon=False, fontsize=8, labelspacing=0.3)


def draw_bars(axes: Any, results: Results, values: Sequence[float], *, title: str, form: str) -> None:
    """Draw a bar for each setting, its value beside it."""
    for place, (value, colour) in enumerate(zip(values, cycle(COLOURS), strict=False)):
        axes.barh(place, value, color=colour, height=0.62)
        axes.text(value, place, " " + form.format(value), va="center", fontsize=8)
    axes.set_yticks(range(len(values)), [setting.label for setting in results])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.25)
    axes.set_title(title)
