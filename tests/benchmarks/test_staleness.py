import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.measured_page import with_figures
from benchmarks.scraped import Observed
from benchmarks.staleness import ALWAYS, SETTINGS, SOMETIMES, as_json, figures
from benchmarks.staleness_table import Results, idle_of, markdown_table, text_table
from benchmarks.trial import (
    HOLDOUT,
    LEARNING_RATE,
    WORKERS,
    Look,
    Setting,
    Stragglers,
    Trial,
    idle_share,
    job_settings,
    run_trial,
    write_digits,
)
from psworker.data import open_source
from psworker.job import load_job

BSP, ASP, BACKUP = Setting("BSP", 0), Setting("ASP", math.inf), Setting("BSP, 1 backup", 0, backup=1)


def trial(*losses: float, dropped: int = 0, most: float = 5.0, count: int = 10) -> Trial:
    looks = tuple(Look(0.5 * number, 20 * number, loss) for number, loss in enumerate(losses))
    observed = Observed(count, 2.0 if count else 0.0, most if count else 0.0)
    return Trial(looks, (0.0, 0.5, 0.6, 0.7), observed, observed, dropped)


def columns(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]


# --- what is trained


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_a_job_is_what_its_setting_says(setting: Setting) -> None:
    job = load_job(None, job_settings(setting, Path("digits.csv"), seed=7))
    assert job.train.staleness == setting.staleness
    assert job.train.backup_workers == setting.backup
    assert job.train.workers == WORKERS
    assert job.seed == 7
    assert job.eval.every == 0


def test_the_learning_rate_of_a_mean_is_that_of_the_sum_of_its_gradients() -> None:
    def rate(setting: Setting) -> object:
        return dict(load_job(None, job_settings(setting, Path("d.csv"), 0)).optimizer.settings)["lr"]

    assert rate(ASP) == LEARNING_RATE
    assert rate(Setting("SSP", 3)) == LEARNING_RATE
    assert rate(BSP) == 4 * LEARNING_RATE
    assert rate(BACKUP) == 3 * LEARNING_RATE


def test_minibatches_are_steps_times_gradients_where_steps_are_kept_and_else_all_steps() -> None:
    assert BSP.minibatches([5, 5, 5, 5]) == 20
    assert BACKUP.minibatches([5, 5, 5, 4]) == 15
    assert ASP.minibatches([9, 9, 8, 2]) == 28


def test_digits_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    write_digits(path)
    job = load_job(None, job_settings(ASP, path, seed=0))
    source = open_source(job.data, seed=0, holdout=HOLDOUT)
    original = open_source(load_job(None, ()).data, seed=0, holdout=0.0)
    assert (source.features, source.classes) == (64, 10)
    parts = [source.read(chunk, part) for chunk in range(source.chunks) for part in ("train", "holdout")]
    rows = sum(len(part) for part in parts)
    whole = [original.read(chunk, "train") for chunk in range(original.chunks)]
    assert rows == sum(len(chunk) for chunk in whole) == 1797
    pixels = sum(float(part.x.sum(dtype=np.float64)) for part in parts)
    assert pixels == pytest.approx(sum(float(chunk.x.sum(dtype=np.float64)) for chunk in whole), rel=1e-4)


def test_a_run_has_looks_until_its_end_and_figures_of_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    write_digits(path)
    stragglers = Stragglers("always", "", (1.0, 0.0, 0.0, 0.0), 0.3)
    found = run_trial(Setting("SSP", 2), stragglers, path, seed=0)
    assert found.looks[0].minibatches == 0
    assert found.looks[0].loss == pytest.approx(math.log(10), rel=1e-6)
    assert found.looks[-1].seconds >= 0.3
    assert found.looks[-1].minibatches > 0
    assert len(found.idle) == WORKERS
    assert all(0 <= share <= 1 for share in found.idle)
    assert found.ahead.count > 0
    assert found.ahead.most <= 3.0  # a worker has ended one step more than it may begin
    assert found.dropped == 0


# --- what is made of it


def test_time_to_a_loss_is_that_of_the_first_look_at_it() -> None:
    run = trial(2.0, 0.9, 0.5, 0.6, 0.4)
    assert run.reached(0.5) == Look(1.0, 40, 0.5)
    assert run.reached(0.3) is None
    assert run.minibatches_per_second == 40.0


def test_idle_is_push_and_pull() -> None:
    assert idle_share({"push": 2.0, "pull": 1.0, "compute": 8.0, "data": 1.0}) == 0.25
    assert idle_share({"compute": 8.0}) == 0.0


def test_idle_of_fast_and_slow_workers_apart() -> None:
    fast, slow = idle_of(ALWAYS, [trial(1.0)])
    assert fast == pytest.approx(0.6)
    assert slow == 0.0
    everybody, nobody = idle_of(SOMETIMES, [trial(1.0)])
    assert everybody == pytest.approx(0.45)
    assert nobody is None


def test_table_has_medians_and_says_what_was_not_reached() -> None:
    results: Results = {
        BSP: [trial(2.0, 0.9, 0.8, count=0)] * 3,
        ASP: [trial(2.0, 0.4, 0.3), trial(2.0, 0.6, 0.5), trial(2.0, 0.9, 0.4, most=math.inf)],
        BACKUP: [trial(2.0, 0.4, 0.3, dropped=10)],
    }
    heading, bsp, asp, backup = columns(text_table(ALWAYS, results))
    assert heading[:2] == ["s to loss 0.5", "least - most"]
    assert bsp[:4] == ["BSP", "> 4.5", "> 4.5 - > 4.5", "-"]
    assert bsp[-5:] == ["-", "-", "-", "-", "0%"]
    assert asp == ["ASP", "1.0", "0.5 - 1.0", "40", "40", "60%", "0%", *["2.0", "> 100"] * 2, "0%"]
    assert backup[-1] == "20%"


def test_markdown_has_the_same_cells() -> None:
    results: Results = {ASP: [trial(2.0, 0.4, 0.3)]}
    heading, line, row = markdown_table(SOMETIMES, results).splitlines()
    assert heading.count("|") == line.count("|") == row.count("|")
    assert [cell.strip() for cell in row.split("|")[1:4]] == ["ASP", "0.5", "0.5 - 0.5"]


def test_json_has_every_look_and_no_infinity() -> None:
    document = json.loads(json.dumps(as_json({ALWAYS: {ASP: [trial(2.0, 0.4, most=math.inf)]}})))
    (series,) = document["series"]
    assert (series["stragglers"], series["setting"]) == ("always", "ASP")
    assert series["runs"][0]["looks"][1] == {"seconds": 0.5, "minibatches": 20, "loss": 0.4}
    assert series["runs"][0]["ahead"]["most"] is None


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = "before <!-- measured: begin --> old <!-- measured: end --> after"
    once = with_figures(page, "new")
    assert once == "before <!-- measured: begin -->\nnew\n<!-- measured: end --> after"
    assert with_figures(once, "new") == once


@pytest.mark.parametrize(
    "page", ["", "<!-- measured: begin -->", "<!-- measured: end --><!-- measured: begin -->"]
)
def test_a_page_without_its_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="measured"):
        with_figures(page, "new")


def test_the_page_of_this_project_has_its_marks() -> None:
    page = Path(__file__).parents[2] / "docs" / "staleness.md"
    measured = figures({ALWAYS: {ASP: [trial(2.0, 0.4)]}})
    assert measured in with_figures(page.read_text(encoding="utf-8"), measured)


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.staleness_plot import draw

    results = {
        stragglers: {setting: [trial(2.0, 0.9, 0.4)] for setting in SETTINGS}
        for stragglers in (ALWAYS, SOMETIMES)
    }
    for name in ("one.svg", "two.svg"):
        draw(results, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


# --- the command


def test_docs_without_matplotlib_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["staleness", "--docs"]) == 2
    assert "asyncps[plots]" in capsys.readouterr().err


def test_rounds_are_a_number_above_zero() -> None:
    with pytest.raises(SystemExit):
        main(["staleness", "--repeat", "0"])
