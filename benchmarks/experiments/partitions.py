"""Who trains on what: does it matter how the data is cut?"""

from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import draw_bars, draw_curves, mean, spread
from benchmarks.experiments.trials import Results, Setting

WORKERS = 4
EPOCHS = 8


def setting(partition: str, staleness: str, label: str) -> Setting:
    """Return one way to cut the data, which is sorted by label, for workers who are kept together or not."""
    rate = 2.0 if staleness == "0" else 0.5
    overrides = (
        f'data.partition="{partition}"', f"train.staleness={staleness}", f"train.epochs={EPOCHS}",
        "train.batch-size=32", f"optimizer.lr={rate}", "data.chunk-rows=100",
    )  # fmt: skip
    return Setting(label, (*BASE, *overrides), workers=WORKERS)


PARTITIONS = {
    "leases": "leased chunks",
    "contiguous": "contiguous: few labels each",
    "round-robin": "round-robin chunks",
    "hash:hand": "hashed by writer",
}
SETTINGS = [
    setting(partition, staleness, f"{label}, {how}")
    for staleness, how in (("0", "synchronous"), ("inf", "asynchronous"))
    for partition, label in PARTITIONS.items()
]


def _table(results: Results) -> Table:
    return [
        ["rows sorted by label", "held-out loss", "held-out accuracy", "accuracy after 1 epoch"],
        *(
            [one.label, spread(trials, "loss"), spread(trials, "accuracy"), _early(trials)]
            for one, trials in results.items()
        ),
    ]


def _early(trials: Any) -> str:
    return f"{sum(trial.curves['accuracy'][0][1] for trial in trials) / len(trials):.3f}"


def _draw(figure: Any, results: Results) -> None:
    curves, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    unsynchronised = {one: trials for one, trials in results.items() if one.label.endswith(", asynchronous")}
    draw_curves(curves, unsynchronised, "accuracy", title="Asynchronous workers")
    accuracies = [mean(trials, "accuracy") for trials in results.values()]
    draw_bars(bars, results, accuracies, title="Accuracy in the end", form="{:.3f}")


EXPERIMENT = Experiment(
    name="partitions",
    question="Who trains on what: does it matter how the data is cut?",
    settings=SETTINGS,
    table=_table,
    draw=_draw,
    alt="The held-out accuracy by epoch and in the end, for several ways to cut the data",
    order="sorted",
)
