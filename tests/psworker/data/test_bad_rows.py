import logging
from pathlib import Path

import pytest

from psworker.data import open_source
from psworker.errors import DataError
from psworker.job import DataSettings
from tests.psworker.data.reading import opened, read_all, surveyed

BAD = [
    ("1,2", "fields", "line 3: the row has 2 values, the header 3"),
    ('"1,2,0', "fields", "cannot be split into fields"),
    ("x,2,0", "number", 'line 3, column "a": "x" is not a number'),
    ("1,inf,0", "number", 'line 3, column "b": "inf" is not finite'),
    (",2,0", "missing", 'line 3, column "a": no value'),
    ("1,2,", "target", 'line 3, column "label": no value'),
    ("1,2,cat", "target", 'line 3, column "label": "cat" is not a number'),
    ("1,\udcff,0", "encoding", "line 3: not UTF-8; convert the file to UTF-8"),
]


def write(tmp_path: Path, *bad: str) -> str:
    text = "\n".join(["a,b,label", "1,2,3", *bad, "4,5,6", ""])
    (tmp_path / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    return str(tmp_path / "a.csv")


@pytest.mark.parametrize(("row", "kind", "message"), BAD)
def test_a_bad_row_ends_the_work_or_is_left_out(tmp_path: Path, row: str, kind: str, message: str) -> None:
    path = write(tmp_path, row)
    with pytest.raises(DataError) as caught:
        read_all(opened(source=path))
    assert message in str(caught.value)
    assert caught.value.line == 3
    source = opened(source=path, on_error="skip")
    assert read_all(source).x.tolist() == [[1, 2], [4, 5]]
    assert source.skipped == {kind: 1}


def test_rows_left_out_are_counted_once_and_told_once_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, *(row for row, _, _ in BAD), "z,2,0")
    source = opened(source=path, on_error="skip", chunk_rows=3)
    assert source.chunks > 2
    for _ in range(2):  # epochs
        assert read_all(source).y.tolist() == [3, 6]
    assert source.skipped == {"fields": 2, "number": 3, "missing": 1, "target": 2, "encoding": 1}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 5
    assert any('a.csv, line 5, column "a": "x" is not a number' in text for text in warnings)
    assert not any('"z"' in text for text in warnings)


def test_the_first_bad_row_is_told_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    for bad in ((",2,0", "x,2,0"), ("x,2,0", ",2,0")):
        with pytest.raises(DataError) as caught:
            read_all(opened(source=write(tmp_path, *bad)))
        assert caught.value.line == 3


def test_skipped_rows_of_a_missing_number_do_not_hide_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 4"):
        read_all(opened(source=write(tmp_path, ",2,0", "x,2,0"), missing="skip"))


def test_a_survey_counts_no_row_that_training_counts(tmp_path: Path) -> None:
    rows = [f"{row},{row},0" for row in range(20)]
    path = write(tmp_path, *rows, "3,x,0", "4,x,0")
    data = DataSettings(source=path, on_error="skip", scale="standard", partition="hash:a")
    source = open_source(data, seed=0, holdout=0.0, parts=2)
    informed = surveyed(source)
    assert informed.skipped == {}
    for part in range(2):
        informed.read(0, "train", part)
    assert informed.skipped == {"number": 2}


def test_a_row_that_is_left_out_does_not_change_which_others_are_held_out(tmp_path: Path) -> None:
    good = [f"{row},0,0" for row in range(200)]
    whole = opened(source=write(tmp_path, *good), holdout=0.5)
    held = set(read_all(whole, "holdout").x[:, 0].tolist()) - {50}
    some = opened(
        source=write(tmp_path, *(row if row != "50,0,0" else "x,0,0" for row in good)),
        holdout=0.5,
        on_error="skip",
    )
    assert set(read_all(some, "holdout").x[:, 0].tolist()) == held


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("x 1:1", "target"),
        ("1 2:1 1:1", "entry"),
        ("1 1", "entry"),
        ("1 1:x", "number"),
        ("1 1:\udcff", "encoding"),
    ],
)
@pytest.mark.parametrize("hashed", [False, True])
def test_bad_rows_of_libsvm(tmp_path: Path, row: str, kind: str, hashed: bool) -> None:
    path = tmp_path / "a.svm"
    path.write_bytes(f"1 1:1\n{row}\n0 2:2\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        opened(source=str(path), hashed=hashed, dimensions=2).read(0, "train")
    assert caught.value.line == 2
    source = opened(source=str(path), hashed=hashed, on_error="skip")
    batch = source.read(0, "train")
    assert batch.x.shape == (2, 2)
    assert batch.y.tolist() == [1, 0]
    assert source.skipped == {kind: 1}


def test_a_file_all_rows_of_which_are_bad_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,label\nx,1\ny,2\n")
    assert len(opened(source=str(tmp_path / "a.csv"), on_error="skip").read(0, "train")) == 0


@pytest.mark.parametrize(
    ("cell", "words"), [("1,5", "is not a number: write a decimal point;"), ("x,5", "is not a number;")]
)
def test_a_decimal_comma_is_told(tmp_path: Path, cell: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(f"a;b;label\n{cell};2;0\n")
    with pytest.raises(DataError, match=words):
        read_all(opened(source=str(tmp_path / "a.csv")))


def test_it_is_said_how_bad_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "x,2,0")
    with pytest.raises(DataError, match=r'or have such rows left out with \[data\] on-error = "skip"'):
        read_all(opened(source=path))
    skipping = opened(source=path, on_error="skip")
    read_all(skipping)
    assert not any("on-error" in record.getMessage() for record in caplog.records)
    assert skipping.skipped_in(0, "train") == {"number": 1}
    assert skipping.skipped_in(1, "train") == skipping.skipped_in(0, "holdout") == {}
