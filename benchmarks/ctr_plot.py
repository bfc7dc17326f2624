"""The log-loss of the learners over seconds and over examples, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.ctr_trial import Report
from benchmarks.staleness_plot import COLOURS, STYLE


def draw(report: Report, path: Path) -> None:
    """Write the picture of the first round to `path`, in the format of its ending."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "ctr"}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        over_seconds, over_examples = figure.subplots(1, 2, sharey=True)
        for (entry, trials), colour in zip(report.trials.items(), COLOURS, strict=False):
            losses = [look.loss for look in trials[0].looks]
            line: dict[str, Any] = {"color": colour, "linewidth": 1.6, "label": entry.label}
            over_seconds.plot([look.seconds for look in trials[0].looks], losses, **line)
            over_examples.plot([look.examples / 1e3 for look in trials[0].looks], losses, **line)
        over_seconds.set(title="Held-out log-loss over seconds", xlabel="seconds", xlim=(0, None))
        over_examples.set(title="Over examples", xlabel="thousand examples", xlim=(0, None))
        over_seconds.set_ylabel("log-loss")
        over_examples.legend(frameon=False, fontsize=8, labelspacing=0.3)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)
