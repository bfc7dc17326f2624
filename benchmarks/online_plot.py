"""The runs of the online benchmark as a picture: the accuracy before and after the change."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.online import DRIFTING, Results
from benchmarks.online_streams import STREAMS
from benchmarks.staleness_plot import COLOURS, STYLE


def draw(results: Results, path: Path) -> None:
    """Write the picture to `path`: an area for each stream, a curve for each setting of one worker.

    Curves are those of the first seed.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": "online"}):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        areas: Any = figure.subplots(1, len(STREAMS), sharey=True)
        for axes, stream in zip(areas, STREAMS, strict=True):
            shown = [one for one in results if one[0].stream is stream and one[0].workers == 1]
            for (setting, ((trial,), *_)), colour in zip(shown, (COLOURS[4], COLOURS[0]), strict=False):
                examples, accuracy = zip(*trial.curve, strict=True)
                label = f"{setting.drift}, {setting.reaction}"
                axes.plot(examples, accuracy, color=colour, linewidth=1.6, label=label)
                for alarm in trial.alarms:
                    axes.plot(
                        alarm,
                        0.02,
                        marker="^",
                        color=colour,
                        clip_on=False,
                        transform=axes.get_xaxis_transform(),
                    )
            axes.axvline(DRIFTING, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set(title=stream.label + (" (real)" if stream.real else ""), xlabel="examples")
        areas[0].set_ylabel("accuracy of the latest 2,000")
        areas[0].legend(frameon=False, fontsize=8, loc="lower left")
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)
