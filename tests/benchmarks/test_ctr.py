import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy")

from benchmarks.__main__ import main
from benchmarks.ctr import figures, write_docs
from benchmarks.ctr_data import CHUNK_EXAMPLES, Chunk
from benchmarks.ctr_learners.registry import ENTRIES, MACHINE, ORACLE, OURS, REGRESSION, Entry
from benchmarks.ctr_learners.single import SingleMachine
from benchmarks.ctr_learners.vowpal import VowpalWabbit
from benchmarks.ctr_table import as_json, loss_difference, markdown_table, notes, text_table
from benchmarks.ctr_trial import Look, Report, Stream, Trial, run, run_trial, write_stream
from benchmarks.ctr_worker import minibatches
from benchmarks.measured_page import with_figures


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return write_stream(tmp_path_factory.mktemp("ctr"), 0, 5 * CHUNK_EXAMPLES, held_out=1, segment=2)


class Constant:
    """Says the same of every example, and remembers what it was given."""

    def __init__(self, probability: float = 0.25) -> None:
        self.probability = probability
        self.learned: list[Path] = []
        self.stopped = False

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        self.count = len(held_out.clicks)
        return 1.5

    def learn(self, segment: Sequence[Path]) -> None:
        self.learned += segment

    def predict(self) -> npt.NDArray[np.float32]:
        return np.full(self.count, self.probability, np.float32)

    def stop(self) -> None:
        self.stopped = True


def trial(*losses: float, seconds: float = 1.0, writing: float = 0.0) -> Trial:
    looks = [Look(1000 * number, seconds * number, loss, 0.7) for number, loss in enumerate(losses, start=1)]
    return Trial(tuple(looks), writing)


def report(ours: float, oracle: float) -> Report:
    trials = {OURS: [trial(0.6, ours)], ORACLE: [trial(0.6, oracle, writing=2.0)]}
    return Report(2000, 500, Look(0, 0.0, 0.4, 0.85), trials, {"vw": "vowpalwabbit: not installed"})


# --- the stream and who learns it


def test_the_stream_comes_in_segments(stream: Stream) -> None:
    assert [len(segment) for segment in stream.segments] == [2, 2, 1]
    assert stream.examples == 5 * CHUNK_EXAMPLES
    assert len(stream.held_out.clicks) == CHUNK_EXAMPLES
    assert 0.3 < stream.best.loss < 0.5


def test_a_learner_gets_every_chunk_once_and_is_looked_at_after_each_segment(stream: Stream) -> None:
    learner = Constant()
    found = run_trial(learner, stream)
    assert learner.learned == [path for segment in stream.segments for path in segment]
    assert [look.examples for look in found.looks] == [CHUNK_EXAMPLES * chunks for chunks in (2, 4, 5)]
    assert {look.area for look in found.looks} == {0.5}
    assert found.writing == 1.5
    assert learner.stopped


def test_a_learner_is_stopped_whatever_happens(stream: Stream) -> None:
    class Broken(Constant):
        def learn(self, segment: Sequence[Path]) -> None:
            raise OSError("no such luck")

    learner = Broken()
    with pytest.raises(OSError, match="no such luck"):
        run_trial(learner, stream)
    assert learner.stopped


def test_who_is_not_installed_is_skipped_with_a_word(stream: Stream) -> None:
    absent = Entry("absent", "absent", Constant, needs="no_such_package_anywhere")
    found = run([absent, Entry("constant", "constant", Constant)], stream, 2, lambda line: None)
    assert [(entry.name, len(trials)) for entry, trials in found.trials.items()] == [("constant", 2)]
    assert "asyncps[peers]" in found.missing["absent"]


def test_one_process_learns(stream: Stream) -> None:
    found = run_trial(SingleMachine(0.1, 1.0), stream)
    assert found.looks[-1].loss < found.looks[0].loss < 0.56
    assert found.looks[-1].area > 0.65


def test_minibatches_are_all_examples_in_their_order(stream: Stream) -> None:
    batches = list(minibatches(stream.segments[0], 3000))
    assert [len(batch.clicks) for batch in batches] == [3000, 3000, CHUNK_EXAMPLES - 6000] * 2


def test_vowpal_wabbit_learns(stream: Stream) -> None:
    pytest.importorskip("vowpalwabbit")
    found = run_trial(VowpalWabbit(), stream)
    assert found.looks[-1].loss < 0.56
    assert found.writing > 0


def test_scikit_learn_learns(stream: Stream) -> None:
    pytest.importorskip("sklearn")
    entry = next(entry for entry in ENTRIES if entry.name == "scikit")
    assert run_trial(entry.build(), stream).looks[-1].loss < 0.57


@pytest.mark.long
def test_workers_and_server_learn_as_one_process_does(stream: Stream) -> None:
    ours, oracle = (run_trial(entry.build(), stream) for entry in (OURS, ORACLE))
    assert ours.looks[-1].loss == pytest.approx(oracle.looks[-1].loss, abs=0.01)
    assert REGRESSION.model.dim == 1
    assert MACHINE.model.dim == 9


# --- what is made of it


def test_time_to_a_loss_and_rates() -> None:
    found = trial(0.6, 0.5, 0.4, seconds=2.0, writing=4.0)
    assert found.reached(0.5) == Look(2000, 4.0, 0.5, 0.7)
    assert found.reached(0.3) is None
    assert found.examples_per_second == 500
    assert found.examples_per_second_with_writing == 300


def test_the_table_has_both_rates_and_what_was_not_reached() -> None:
    heading, ours, oracle, best = text_table(report(0.52, 0.51), target=0.515).splitlines()
    assert "s to 0.515" in heading
    assert ours.split()[-5:] == ["1,000", "-", "-", "0.5200", "0.7000"]
    assert oracle.split()[-5:] == ["500", "2.00", "2,000", "0.5100", "0.7000"]
    assert best.split()[-2:] == ["0.4000", "0.8500"]
    rows = markdown_table(report(0.52, 0.51), target=0.515).splitlines()
    assert len({row.count("|") for row in rows}) == 1


def test_notes_tell_the_difference_to_one_process() -> None:
    assert loss_difference(report(0.5115, 0.51)) == pytest.approx(0.0015)
    assert any("+0.0015" in note and "reached" in note for note in notes(report(0.5115, 0.51)))
    assert any("+0.0100" in note and "missed" in note for note in notes(report(0.52, 0.51)))
    assert any("vowpalwabbit: not installed" in note for note in notes(report(0.52, 0.51)))


def test_json_has_every_look() -> None:
    document = json.loads(json.dumps(as_json(report(0.52, 0.51), 0.515)))
    assert [learner["name"] for learner in document["learners"]] == [OURS.name, ORACLE.name]
    assert document["learners"][0]["trials"][0]["looks"][1]["loss"] == 0.52


def test_docs_are_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = Path(__file__).parents[2] / "docs" / "ctr.md"
    (tmp_path / "ctr.md").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    write_docs(report(0.52, 0.51), 0.515, tmp_path)
    first = (tmp_path / "ctr.svg").read_bytes()
    write_docs(report(0.52, 0.51), 0.515, tmp_path)
    assert (tmp_path / "ctr.svg").read_bytes() == first
    assert OURS.label in (tmp_path / "ctr.md").read_text(encoding="utf-8")


def test_the_page_of_this_project_has_its_marks() -> None:
    page = Path(__file__).parents[2] / "docs" / "ctr.md"
    measured = figures(report(0.52, 0.51), 0.515)
    assert measured in with_figures(page.read_text(encoding="utf-8"), measured)


def test_docs_without_matplotlib_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["ctr", "--docs", str(tmp_path)]) == 2
    assert "asyncps[plots]" in capsys.readouterr().err


def test_an_unknown_learner_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ctr", "--learners", "nobody"])
    assert "nobody" in capsys.readouterr().err
