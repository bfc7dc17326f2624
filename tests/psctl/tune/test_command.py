import io
import json
import math
import signal
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

from psctl import cli
from psctl.tune.search import Trial
from psctl.tune.space import Settings
from psctl.tune.training import Running, Trainer
from psworker.job import load_job

Output = pytest.CaptureFixture[str]
RATES = "optimizer.lr=0.1,1,10"


def trained(trainer: Trainer, number: int, settings: Settings, stop: threading.Event) -> Trial:
    """Return made-up figures: best at 1, and 10 is too much."""
    rate = dict(settings)["optimizer.lr"]
    assert isinstance(rate, int | float)
    trainer.running[number] = Running(number, settings)
    found = math.nan if rate >= 10 else 1 / (1 + abs(math.log10(rate)))
    folds = [found + fold / 8 for fold in range(max(1, trainer.folds))]
    del trainer.running[number]
    return Trial.of(number, settings, tuple(folds), 65.0)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", trained)


def tune(*arguments: str) -> int:
    return cli.main(["tune", "--try", RATES, "--search", "grid", "--measure", "accuracy", *arguments])


@pytest.mark.usefixtures("made_up")
def test_text_is_a_line_for_each_trial_a_table_and_a_command(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert tune("--set", "job.name=a b", "--set", "optimizer.lr=5") == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "trial 1/3: optimizer.lr=0.1: accuracy 0.5000 in 1:05",
        "trial 2/3: optimizer.lr=1: accuracy 1.0000 in 1:05",
        "trial 3/3: optimizer.lr=10: diverged in 1:05",
        "trial  optimizer.lr  accuracy  time      ",
        "    2             1    1.0000  1:05  best",
        "    1           0.1    0.5000  1:05      ",
        "    3            10  diverged  1:05      ",
        "psctl train --servers 1 --workers 2 --set 'job.name=a b' --set optimizer.lr=1",
    ]


@pytest.mark.usefixtures("made_up")
def test_json_is_one_object_and_nothing_else(capsys: Output) -> None:
    assert tune("--format", "json", "--folds", "2") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert len(out.splitlines()) == 1
    assert err == ""
    assert found["best"] == found["trials"][0]
    assert found["best"]["settings"] == {"optimizer.lr": 1}
    assert found["best"]["folds"] == [1.0, 1.125]
    assert found["best"]["deviation"] == pytest.approx(0.125 / math.sqrt(2))
    assert found["trials"][-1]["value"] is None
    assert (found["measure"], found["more_is_better"], found["search"]) == ("accuracy", True, "grid")
    assert found["command"] == "psctl train --servers 1 --workers 2 --set optimizer.lr=1"


@pytest.mark.usefixtures("made_up")
def test_the_best_job_is_a_job_file_and_the_report_a_page(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[model]\nkind = "linear"\n[job]\nname = "<b>"\n')
    best = tmp_path / "best.toml"
    files = ("--output", str(best), "--report", str(tmp_path / "report"))
    given = ("--job", str(tmp_path / "job.toml"), "--set", "train.epochs=3", "--folds", "5")
    assert tune(*given, *files) == 0
    out = capsys.readouterr().out
    assert f"best job: {best}\nreport: {tmp_path / 'report' / 'tune.html'}\n" in out
    overrides = ("train.epochs=3", "optimizer.lr=1", "train.workers=2")
    assert load_job(best, ()) == load_job(tmp_path / "job.toml", overrides), "without a fold"
    page = (tmp_path / "report" / "tune.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<script" not in page
    assert "1 diverged and are left out" in page
    assert "±" in page
    drawings = [
        ElementTree.fromstring(f"<svg{one.split('</svg>')[0]}</svg>") for one in page.split("<svg")[1:]
    ]
    assert [one.attrib["aria-label"] for one in drawings] == ["accuracy by trial", "accuracy by optimizer.lr"]
    assert [len(list(one.iter("circle"))) for one in drawings] == [2, 2]


@pytest.mark.usefixtures("made_up")
def test_where_all_diverge_there_is_no_best(capsys: Output, tmp_path: Path) -> None:
    output = tmp_path / "best.toml"
    arguments = ["tune", "--try", "optimizer.lr=10,20", "--output", str(output)]
    assert cli.main(arguments) == 16
    assert "all trials diverged" in capsys.readouterr().out
    assert not output.exists()
    assert cli.main([*arguments, "--format", "json"]) == 16
    found = json.loads(capsys.readouterr().out)
    assert (found["best"], found["command"], len(found["trials"])) == (None, None, 2)


@pytest.mark.usefixtures("made_up")
def test_a_terminal_gets_a_table_that_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert tune() == 0
    assert "\x1b[" in terminal.getvalue()
    assert "2 of 3 trials" in terminal.getvalue()


def test_an_interrupt_prints_what_is_over(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def run(trainer: Trainer, number: int, settings: Settings, stop: threading.Event) -> Trial:
        if number < 3:
            return trained(trainer, number, settings, stop)
        signal.raise_signal(signal.SIGINT)
        assert stop.wait(30)
        stopped.set()
        raise RuntimeError("stopped")

    monkeypatch.setattr(Trainer, "run", run)
    assert tune() == 130
    out, err = capsys.readouterr()
    assert stopped.is_set()
    assert "    2             1    1.0000  1:05  best" in out
    assert out.endswith("--set optimizer.lr=1\n")
    assert err == "psctl tune: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--try", "optimizer.lr=0.1..1", "--search", "grid"], "a number of points in the range"),
        (["--try", "optimizer.lr=1,2", "--search", "grid", "--trials", "3"], "--trials=3"),
        (["--try", "optimizer.lr=-1..1"], "lr"),
        (["--try", "optimizer.rate=1,2"], "rate"),
        (["--try", "train.batch-size=1..64"], "a whole number"),
        (["--try", "train.batch-sizes=16"], 'did you mean "batch-size"'),
        (["--try", "train.workers=1,2"], "give --workers"),
        (["--try", "eval.holdout=0.1,0.2"], "different rows"),
        (["--try", "train.epochs=1,2", "--search", "halving"], "set the most of them with --set"),
        (["--try", "optimizer.lr=1", "--set", "eval.every=never"], "nothing is held out"),
        (["--try", "optimizer.lr=1", "--set", "eval.holdout=0"], "nothing is held out"),
        (["--try", "optimizer.lr=1", "--output", "no-such-directory/best.toml"], "no such directory"),
        (["--try", "optimizer.lr=1", "--job", "no-such-job.toml"], "no-such-job.toml"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    arguments: list[str], problem: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("started"))
    assert cli.main(["tune", *arguments]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--try", "optimizer.lr=1", "--folds", "1"]])
def test_flags_that_are_no_flags(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", *arguments])
    assert ended.value.code == 2


@pytest.mark.parametrize("search", ["random", "halving", "optuna"])
@pytest.mark.usefixtures("made_up")
def test_a_seed_repeats_a_search(search: str, capsys: Output) -> None:
    if search == "optuna":
        pytest.importorskip("optuna")
    arguments = ["--try", "optimizer.lr=0.01..1:log", "--search", search, "--trials", "4", "--format", "json"]
    found = []
    for seed in ("1", "1", "2"):
        assert cli.main(["tune", *arguments, "--seed", seed]) == 0
        found.append(json.loads(capsys.readouterr().out)["trials"])
    assert found[0] == found[1] != found[2]
    assert len(found[0]) >= 4
