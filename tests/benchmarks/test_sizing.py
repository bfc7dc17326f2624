from pathlib import Path

import pytest

from benchmarks.sizing import Case, foretell, main, measure, render_text

MB = 1_000_000


@pytest.mark.parametrize(
    ("optimizer", "workers", "durability", "peak"),
    [
        ("sgd", 1, "none", 8 * MB),
        ("sgd", 4, "none", 20 * MB),
        ("adam", 4, "none", 36 * MB),
        ("adagrad", 1, "log", 28 * MB),
        ("dcsgd", 2, "none", 20 * MB),
    ],
)
def test_foretold(optimizer: str, workers: int, durability: str, peak: float) -> None:
    needs = foretell(Case(MB, optimizer, "synchronous", workers, durability))
    assert (needs.peak, needs.sent, needs.received) == (peak, 4 * MB, 4 * MB)


def test_a_server_takes_no_more_than_is_foretold(tmp_path: Path) -> None:
    case = Case(2 * MB, "adam", "synchronous", 2, "none")
    measured, foretold = measure(case, 3, tmp_path), foretell(case)
    assert 0.5 * foretold.peak < measured.peak < foretold.peak + 20 * MB
    assert measured.sent == pytest.approx(foretold.sent, rel=0.02)
    assert measured.received == pytest.approx(foretold.received, rel=0.02)
    assert "2,000,000 parameters" in render_text([(case, foretold, measured)])


def test_an_optimizer_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--optimizers", "sgd,adm"])
    assert "adm: unknown; give some of" in capsys.readouterr().err
