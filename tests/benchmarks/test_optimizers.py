import json
import pickle

import pytest

from benchmarks.optimizers import ENTRIES, as_json, main, render_text
from benchmarks.rounds import Point, Report, Row, Settings
from protocol.optimizers import OPTIMIZERS
from tests.benchmarks.test_table import cells

LARGE, SMALL = 100_000_000, 1000


def made_up_report() -> Report:
    sgd = {
        Point(LARGE, "push"): [0.025, 0.050, 0.020],
        Point(LARGE, "push_pull"): [0.050, 0.050, 0.050],
        Point(SMALL, "push"): [50e-6, 60e-6, 40e-6],
        Point(SMALL, "push_pull"): [50e-6, 50e-6, 50e-6],
    }
    half_as_fast = {point: [2 * taken for taken in series] for point, series in sgd.items()}
    return Report(
        Settings(sizes=(LARGE, SMALL), repeat=3, seconds=0.5),
        rows=(Row("sgd", "sgd", sgd), Row("adagrad", "adagrad", half_as_fast)),
        skipped={},
        failed={"ftrl": "RuntimeError: no"},
    )


def test_each_optimizer_is_beside_sgd() -> None:
    lines = render_text(made_up_report()).splitlines()
    assert cells(lines[0]) == [
        "optimizer",
        "100 MB push, GB/s",
        "100 MB push_pull, GB/s",
        "1 KB push, µs",
        "1 KB push_pull, µs",
    ]
    assert cells(lines[1]) == ["sgd", "4.00", "4.00", "50.0", "50.0"]
    assert cells(lines[4]) == ["adagrad", "2.00", "2.00", "100.0", "100.0"]
    assert cells(lines[6]) == ["50%"] * 4
    assert lines[-1] == "ftrl: failed, RuntimeError: no"


def test_json_has_each_rounds_ratio() -> None:
    document = json.loads(json.dumps(as_json(made_up_report())))
    _, adagrad = document["optimizers"]
    assert adagrad["points"][0]["ratios_to_sgd"] == [0.5, 0.5, 0.5]
    assert adagrad["points"][0]["ratio_to_sgd"] == 0.5
    assert document["failed"] == {"ftrl": "RuntimeError: no"}


def test_every_optimizer_is_measured_in_a_process_of_its_own() -> None:
    assert [entry.name for entry in ENTRIES] == list(OPTIMIZERS)
    pickle.dumps([entry.build for entry in ENTRIES])


def test_an_unknown_optimizer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--optimizers", "sgd,adagard"])
    assert caught.value.code == 2
    assert "adagard: unknown; give some of sgd, momentum" in capsys.readouterr().err
