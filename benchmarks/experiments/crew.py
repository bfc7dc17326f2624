"""One, two and four workers: how much faster, and where does the time go?"""

from statistics import fmean
from typing import Any

from benchmarks.experiments.experiment import BASE, Experiment, Table
from benchmarks.experiments.figures import COLOURS, speed, spread
from benchmarks.experiments.trials import Results, Setting

COUNTS = (1, 2, 4)
PHASES = ("data", "pull", "compute", "push")


def setting(workers: int, staleness: str) -> Setting:
    """Return so many workers, kept together or not, of a network whose gradient takes some milliseconds."""
    how = "synchronous" if staleness == "0" else "asynchronous"
    overrides = (
        f"train.staleness={staleness}", "train.epochs=12", "eval.every=12 epochs", "optimizer.lr=0.05",
        "train.batch-size=64", "model.kind=mlp", "model.hidden=[512, 512]",
    )  # fmt: skip
    return Setting(f"{workers}, {how}", (*BASE, *overrides), workers=workers)


def _shares(trials: Any) -> list[float]:
    """Return the share of the workers' time in each phase."""
    seconds = [fmean(trial.split.get(phase, 0.0) for trial in trials) for phase in PHASES]
    return [part / sum(seconds) for part in seconds]


def _table(results: Results) -> Table:
    return [
        ["workers", "examples/s", *PHASES, "held-out accuracy"],
        *(
            [
                one.label,
                speed(trials),
                *(f"{part:.0%}" for part in _shares(trials)),
                spread(trials, "accuracy"),
            ]
            for one, trials in results.items()
        ),
    ]


def _draw(figure: Any, results: Results) -> None:
    speeds, times = figure.subplots(1, 2)
    for how, colour in (("synchronous", COLOURS[0]), ("asynchronous", COLOURS[1])):
        found = [
            fmean(trial.examples_per_second for trial in trials)
            for one, trials in results.items()
            if one.label.endswith(f", {how}")
        ]
        speeds.plot(COUNTS, found, "o-", color=colour, label=how)
        speeds.plot(COUNTS, [count * found[0] for count in COUNTS], ":", color=colour, linewidth=0.8)
    speeds.set(
        title="Examples per second (dotted: n times one)", xlabel="workers", xticks=COUNTS, ylim=(0, None)
    )
    speeds.legend(frameon=False, fontsize=8)
    for place, trials in enumerate(results.values()):
        left = 0.0
        for part, phase, colour in zip(_shares(trials), PHASES, COLOURS, strict=False):
            times.barh(place, part, left=left, color=colour, height=0.62, label=None if place else phase)
            left += part
    times.set_yticks(range(len(results)), [one.label for one in results])
    times.invert_yaxis()
    times.set_xticks((0, 0.5, 1), ("0 %", "50 %", "100 %"))
    times.set_title("Where a worker's time goes")
    times.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))


EXPERIMENT = Experiment(
    name="workers",
    question="One, two and four workers: how much faster, and where does the time go?",
    settings=[setting(count, staleness) for staleness in ("0", "inf") for count in COUNTS],
    table=_table,
    draw=_draw,
    alt="The examples in a second of 1, 2 and 4 workers, and what their time went into",
)
