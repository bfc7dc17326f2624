"""SGD, momentum, Adagrad, Adam: what do they gain, and how much does their rate matter?"""

from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import COLOURS, mean, mean_curve, spread
from benchmarks.experiments.trials import Results, Setting

RULES = {
    "sgd": (0.05, 0.5, 5.0),
    "momentum": (0.005, 0.05, 0.5),
    "adagrad": (0.01, 0.1, 1.0),
    "adam": (0.001, 0.01, 0.1),
}
"""Rates a factor of ten apart, around what is usual."""

EPOCHS = 15


def setting(rule: str, rate: float) -> Setting:
    """Return what one rule with one rate is."""
    overrides = (
        f"optimizer.name={rule}", f"optimizer.lr={rate}", f"train.epochs={EPOCHS}", "train.batch-size=32",
        "train.staleness=0",
    )  # fmt: skip
    return Setting(f"{rule}, rate {rate:g}", (*BASE, *overrides))


def _table(results: Results) -> Table:
    lines = [["optimizer", "rate", "held-out loss", "held-out accuracy", "loss after 3 epochs"]]
    for rule, rates in RULES.items():
        for rate in rates:
            trials = results[setting(rule, rate)]
            early = f"{mean_curve(trials, 'loss')[1][2]:.3f}"
            lines.append([rule, f"{rate:g}", spread(trials, "loss"), spread(trials, "accuracy"), early])
    return lines


def _draw(figure: Any, results: Results) -> None:
    best, sensitivity = figure.subplots(1, 2)
    for (rule, rates), colour in zip(RULES.items(), COLOURS, strict=False):
        losses = [mean(results[setting(rule, rate)], "loss") for rate in rates]
        rate = rates[losses.index(min(losses))]
        curve = mean_curve(results[setting(rule, rate)], "loss")
        best.plot(*curve, color=colour, linewidth=1.8, label=f"{rule}, rate {rate:g}")
        sensitivity.plot([rate / rates[1] for rate in rates], losses, "o-", color=colour, label=rule)
    best.set(title="Each with the best of its rates", xlabel="epoch", ylabel="held-out loss", yscale="log")
    sensitivity.set(title="A rate that is wrong", xlabel="times its middle rate", ylabel="held-out loss")
    sensitivity.set(xscale="log", yscale="log")
    for axes in (best, sensitivity):
        axes.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="optimizers",
    question="SGD, momentum, Adagrad, Adam: what do they gain, and how much does their rate matter?",
    settings=[setting(rule, rate) for rule, rates in RULES.items() for rate in rates],
    table=_table,
    draw=_draw,
    alt="The held-out loss by epoch of each optimizer, and how it depends on the rate",
)
