"""The picture of an experiment, as a file."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.trials import Results
from benchmarks.staleness_plot import STYLE


def save(experiment: Experiment, results: Results, path: Path) -> None:
    """Write the picture to `path`, in the format of its ending."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "experiments"}):
        figure = Figure(figsize=experiment.size, layout="constrained")
        experiment.draw(figure, results)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)
