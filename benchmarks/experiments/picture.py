"""The picture of an experiment, as a file."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.trials import Results

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
    "svg.hashsalt": "experiments",  # the same figures, the same file
}


def save(experiment: Experiment, results: Results, path: Path) -> None:
    """Write the picture to `path`, in the format of its ending."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=experiment.size, layout="constrained")
        experiment.draw(figure, results)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)
