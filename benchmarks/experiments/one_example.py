"""One example at a time, or a mini-batch: what does an example teach, and what does a second?"""

from statistics import fmean
from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import COLOURS, mean_curve, speed, spread
from benchmarks.experiments.trials import Results, Setting

SIZES = (1, 8, 64, 512)
EPOCHS = 6
RATE = 0.02
"""Of one example; a mini-batch of n has that times the root of n, which keeps the noise of a step alike."""


def setting(size: int) -> Setting:
    """Return the setting with mini-batches of `size`."""
    overrides = (
        f"train.batch-size={size}", f"optimizer.lr={RATE * size**0.5:.4g}", f"train.epochs={EPOCHS}",
        "train.staleness=inf",
    )  # fmt: skip
    return Setting("one example" if size == 1 else f"{size} examples", (*BASE, *overrides))


def _table(results: Results) -> Table:
    heading = ["", "held-out loss", "held-out accuracy", "examples/s", "seconds"]
    return [
        heading,
        *(
            [one.label, spread(trials, "loss"), spread(trials, "accuracy"), speed(trials), _seconds(trials)]
            for one, trials in results.items()
        ),
    ]


def _seconds(trials: Any) -> str:
    return f"{fmean(trial.seconds for trial in trials):.1f}"


def _draw(figure: Any, results: Results) -> None:
    by_epoch, by_second = figure.subplots(1, 2, sharey=True)
    for (one, trials), colour in zip(results.items(), COLOURS, strict=False):
        epochs, losses = mean_curve(trials, "loss")
        seconds = epochs / epochs[-1] * fmean(trial.seconds for trial in trials)
        by_epoch.plot(epochs, losses, color=colour, linewidth=1.8, label=one.label)
        by_second.plot(seconds, losses, color=colour, linewidth=1.8, label=one.label)
    by_epoch.set(title="What an example teaches", xlabel="epoch", ylabel="held-out loss", yscale="log")
    by_second.set(title="What a second teaches", xlabel="seconds", xscale="log")
    by_epoch.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="one-example",
    question="One example at a time, or a mini-batch: what does an example teach, and what does a second?",
    settings=[setting(size) for size in SIZES],
    table=_table,
    draw=_draw,
    alt="The held-out loss by epoch and by second, for mini-batches of several sizes",
)
