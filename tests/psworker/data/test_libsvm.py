from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from psworker.data import Batch, Source, libsvm, open_source
from psworker.errors import DataError
from psworker.job import DataSettings


def source(tmp_path: Path, text: str, *, holdout: float = 0.0, **data: object) -> Source:
    path = tmp_path / "a.libsvm"
    path.write_bytes(text.encode())
    return open_source(DataSettings(source=str(path), **data), seed=0, holdout=holdout)  # type: ignore[arg-type]


def read_all(opened: Source) -> Batch:
    batches = [opened.read(chunk, "train") for chunk in range(opened.chunks)]
    return Batch(np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches]))


def test_rows_become_dense(tmp_path: Path) -> None:
    text = "# a comment\r\n+1 1:0.5\t3:-2  # another\r\n\r\n-1\r\n0.25 2:1e2 "
    opened = source(tmp_path, text)
    batch = opened.read(0, "train")
    assert (opened.features, opened.classes) == (3, None)
    np.testing.assert_array_equal(batch.x, [[0.5, 0, -2], [0, 0, 0], [0, 100, 0]])
    np.testing.assert_array_equal(batch.y, [1, -1, 0.25])
    assert batch.x.dtype == np.float32
    assert batch.y.dtype == np.float32


def test_no_column_cuts_the_rows_into_parts(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="part 0 of a chunk of"):
        source(tmp_path, "1 1:1\n").read(0, "train", 0)


def test_dimensions_and_classes_come_from_the_settings(tmp_path: Path) -> None:
    opened = source(tmp_path, "cat 1:1\ndog 2:1\ncat\n", dimensions=4, classes=("dog", "cat"))
    batch = opened.read(0, "train")
    assert (opened.features, opened.classes) == (4, 2)
    assert batch.x.shape == (3, 4)
    assert batch.y.tolist() == [1, 0, 1]
    assert batch.y.dtype == np.int64


@pytest.mark.parametrize("extension", ["svm", "svmlight", "LIBSVM"])
def test_the_extensions(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_text("1 1:1\n")
    assert open_source(DataSettings(source=str(path)), seed=0, holdout=0.0).features == 1


values = st.floats(-1e6, 1e6, width=32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.just(0.0) | values, min_size=5, max_size=5), min_size=1, max_size=12))
def test_the_same_numbers_as_scikit_learn_reads(tmp_path: Path, rows: list[list[float]]) -> None:
    path = tmp_path / "b.svm"
    x = np.array(rows)
    dump_svmlight_file(x, np.arange(len(x)), str(path), zero_based=False, comment="made up")
    expected, labels = load_svmlight_file(str(path), n_features=5, zero_based=False)
    data = DataSettings(source=str(path), dimensions=5, chunk_rows=3)
    batch = read_all(open_source(data, seed=0, holdout=0.0))
    np.testing.assert_array_equal(batch.x, expected.toarray().astype(np.float32))
    np.testing.assert_array_equal(batch.y, labels)


def test_chunks_and_parts_are_all_rows_once(tmp_path: Path) -> None:
    text = "".join(f"{i} {1 + i % 7}:{i + 1}\n" for i in range(200))
    opened = source(tmp_path, text, chunk_rows=9, holdout=0.3)
    assert opened.chunks > 10
    pieces = [opened.read(c, part) for c in range(opened.chunks) for part in ("train", "holdout")]
    assert sorted(np.concatenate([piece.y for piece in pieces])) == list(range(200))
    for piece in pieces:
        np.testing.assert_array_equal(piece.x.sum(axis=1), piece.y + 1)


def test_a_part_without_rows_is_empty(tmp_path: Path) -> None:
    opened = source(tmp_path, "1 1:1 2:1\n")
    assert opened.read(0, "holdout").x.shape == (0, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cat 1:1", 'the label "cat" is not a number; list the labels in [data] classes'),
        ("nan 1:1", 'the label "nan" is not finite'),
        ("1:1 2:1", 'the label "1:1" is not a number'),
        ("1 1:abc", 'the value "abc" of index 1 is not a number'),
        ("1 1:", 'the value "" of index 1 is not a number'),
        ("1 1:inf", 'the value "inf" of index 1 is not finite'),
        ("1 1:1e39", 'the value "1e39" of index 1 is too large for float32'),
        ("1 :1", '":1" is not index:value'),
        ("1 2", '"2" is not index:value'),
        ("1 1:2:3", 'the value "2:3" of index 1 is not a number'),
        ("1 1 : 2", '"1" is not index:value'),
        ("1 x:2", '"x:2" is not index:value'),
        ("1 1.5:2", '"1.5:2" is not index:value'),
        (f"1 {'9' * 5000}:2", "is not index:value"),
        ("1 0:2", "index 0 is not in 1..4"),
        ("1 5:2", "index 5 is not in 1..4; correct it or [data] dimensions"),
        ("1 2:1 1:2", "index 1 comes after 2; sort the row"),
        ("1 2:1 2:2", "index 2 comes after 2"),
    ],
)
def test_a_bad_row_is_named_by_its_true_line(tmp_path: Path, row: str, message: str) -> None:
    good = "1 1:2 3:4\n" * 50
    opened = source(tmp_path, f"# c\n\n{good}{row}\n{good}bad\n", dimensions=4, chunk_rows=9)
    with pytest.raises(DataError) as caught:
        read_all(opened)
    assert message in str(caught.value)
    assert caught.value.line == 53


def test_a_label_that_is_in_no_class(tmp_path: Path) -> None:
    opened = source(tmp_path, "cat 1:1\ncow 1:1\n", classes=("cat", "crow"))
    with pytest.raises(DataError, match=r'line 2: the label "cow" is not in .* did you mean "crow"'):
        opened.read(0, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("1\n2\n", "no row has a feature"),
        ("1 1:1\n1 x:1\n", 'line 2: "x" is not an index'),
        ("1 999999999:1\n", "too wide to be made dense"),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(tmp_path, text)


def test_a_chunk_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libsvm, "MAX_DENSE", 4 * 10 * 3)
    opened = source(tmp_path, "1 10:1\n" * 4)
    with pytest.raises(DataError, match=r"set .* chunk-rows to 3 or less"):
        opened.read(0, "train")
