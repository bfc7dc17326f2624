import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from protocol.status import ClusterStatus
from psctl.recording import Recording
from psctl.report import page, write_report
from psctl.result import result_of
from psworker.job import load_job

MakeStatus = Callable[..., ClusterStatus]
JOB = load_job(None, ())


class Reader(HTMLParser):
    """What a page says, and of which elements it is made."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def recorded(status: ClusterStatus) -> Recording:
    recording = Recording()
    recording.note(status.jobs[0])
    recording.note_split("worker-0", {"data": 0.25, "pull": 0.5, "compute": 4.0, "push": 1.25})
    return recording


def test_settings_figures_and_curves_are_there(make_status: MakeStatus, tmp_path: Path) -> None:
    status = make_status(phase="finished")
    file = write_report(tmp_path / "new" / "place", recorded(status), JOB, result_of(status, JOB))
    assert file == tmp_path / "new" / "place" / "report.html"
    reader = Reader(file.read_text())
    for heading in (
        "Training loss", "Held-out loss", "Held-out accuracy", "Throughput", "Staleness", "Settings",
        "Speed of each worker", "Where each worker's time went", "Workers", "Evaluations", "Result",
    ):  # fmt: skip
        assert heading in reader.texts
    assert reader.tags.count("svg") == 7
    assert "6.0 s" in reader.texts, "of a worker's time"
    assert reader.texts[reader.texts.index("[train] batch-size") + 1] == "32"
    assert reader.texts[reader.texts.index("[optimizer] lr") + 1] == "0.5"


def test_it_is_readable_without_a_network_and_runs_nothing(make_status: MakeStatus) -> None:
    status = make_status()
    text = page(recorded(status), JOB, result_of(status, JOB))
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name in ("href", "src") or name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", text)


def test_names_are_no_markup(make_status: MakeStatus) -> None:
    name = "<script>alert(1)</script>"
    status = make_status(names=(name, "worker-1"))
    reader = Reader(page(recorded(status), JOB, result_of(status, JOB)))
    assert "script" not in reader.tags
    assert name in reader.texts


def test_a_job_that_was_over_too_soon_says_what_is_missing(make_status: MakeStatus) -> None:
    status = make_status(evaluations=(), train_loss=None)
    recording = Recording()
    text = page(recording, JOB, result_of(status, JOB))
    assert "no worker's metrics could be read" in text
    assert text.count("nothing was measured") == 3


def test_what_went_wrong_on_the_way_is_there(troubled: ClusterStatus, make_status: MakeStatus) -> None:
    reader = Reader(page(recorded(troubled), JOB, result_of(troubled, JOB)))
    for heading in ("Warnings", "Returns after divergence"):
        assert heading in reader.texts
    figures = dict(zip(reader.texts, reader.texts[1:], strict=False))
    assert figures["rows left out"] == "1,312 (12 fields, 1,300 number)"
    assert figures["went back"].startswith("2 times, last from loss nan")
    assert figures["learning rate"] == "x 0.25"
    first = reader.texts.index("on with learning rate x") + 1
    assert reader.texts[first : first + 8] == ["40", "1.000e+30", "1", "0.5", "1,200", "nan", "3", "0.25"]
    well = Reader(page(recorded(make_status()), JOB, result_of(make_status(), JOB)))
    assert not {"Warnings", "Returns after divergence", "rows left out", "went back"} & set(well.texts)
