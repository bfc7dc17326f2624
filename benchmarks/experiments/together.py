"""Synchronous, stale, asynchronous: how fast, and how good in the end?"""

from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import draw_bars, draw_curves, speed, spread
from benchmarks.experiments.trials import Results, Setting

WORKERS = 4
EPOCHS = 12
RATE = 0.1


def setting(label: str, staleness: str) -> Setting:
    """Return one way to keep workers together.

    A synchronous step is the mean of the workers' gradients, so its rate is that of a single one times
    their number: each example weighs the same in all of them.
    """
    rate = RATE * WORKERS if staleness == "0" else RATE
    overrides = (
        f"train.staleness={staleness}", f"optimizer.lr={rate:g}", f"train.epochs={EPOCHS}",
        "train.batch-size=16",
    )  # fmt: skip
    return Setting(label, (*BASE, *overrides), workers=WORKERS)


SETTINGS = (
    setting("synchronous", "0"),
    setting("stale by 1", "1"),
    setting("stale by 3", "3"),
    setting("stale by 10", "10"),
    setting("asynchronous", "inf"),
)


def _table(results: Results) -> Table:
    return [
        ["", "examples/s", "held-out loss", "held-out accuracy"],
        *(
            [one.label, speed(trials), spread(trials, "loss"), spread(trials, "accuracy")]
            for one, trials in results.items()
        ),
    ]


def _draw(figure: Any, results: Results) -> None:
    curves, bars = figure.subplots(1, 2)
    draw_curves(curves, results, "loss", title="How good")
    speeds = [sum(trial.examples_per_second for trial in trials) / len(trials) for trials in results.values()]
    draw_bars(bars, results, speeds, title="How fast: examples per second", form="{:,.0f}")


EXPERIMENT = Experiment(
    name="together",
    question="Synchronous, stale, asynchronous: how fast, and how good in the end?",
    settings=SETTINGS,
    table=_table,
    draw=_draw,
    alt="The held-out loss by epoch and the examples in a second, from synchronous to asynchronous",
)
