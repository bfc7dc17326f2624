"""Batch size and learning rate: which go together?"""

from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import mean
from benchmarks.experiments.trials import Results, Setting

BATCHES = (4, 16, 64, 256)
RATES = (0.02, 0.1, 0.5, 2.0, 8.0)
EPOCHS = 8


def setting(batch: int, rate: float) -> Setting:
    """Return the setting of one cell."""
    overrides = (
        f"train.batch-size={batch}", f"optimizer.lr={rate}", f"train.epochs={EPOCHS}", "train.staleness=0",
        f"eval.every={EPOCHS} epochs",
    )  # fmt: skip
    return Setting(f"{batch} x {rate:g}", (*BASE, *overrides))


def _table(results: Results) -> Table:
    heading = ["batch size", *(f"rate {rate:g}" for rate in RATES)]
    return [
        heading,
        *([f"{batch}", *(f"{_loss(results, batch, rate):.3f}" for rate in RATES)] for batch in BATCHES),
    ]


def _loss(results: Results, batch: int, rate: float) -> float:
    return mean(results[setting(batch, rate)], "loss")


def _draw(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    losses = [[_loss(results, batch, rate) for rate in RATES] for batch in BATCHES]
    axes.imshow(losses, cmap="viridis", norm="log", aspect="auto")
    middle = sorted(loss for row in losses for loss in row)[len(RATES) * len(BATCHES) // 2]
    for row, line in enumerate(losses):
        for column, loss in enumerate(line):
            colour = "white" if loss < middle else "black"
            axes.text(column, row, f"{loss:.3f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    axes.set_yticks(range(len(BATCHES)), [str(batch) for batch in BATCHES])
    axes.set(xlabel="learning rate", ylabel="batch size of each of 2 workers")
    axes.set_title(f"Held-out loss after {EPOCHS} epochs: dark is good")
    axes.spines[:].set_visible(False)


EXPERIMENT = Experiment(
    name="batch-rate",
    question="Batch size and learning rate: which go together?",
    settings=[setting(batch, rate) for batch in BATCHES for rate in RATES],
    table=_table,
    draw=_draw,
    alt="The held-out loss for each batch size and learning rate",
    seeds=1,
    size=(7, 4),
)
