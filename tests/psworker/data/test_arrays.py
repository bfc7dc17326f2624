from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psworker.errors import DataError
from tests.psworker.data.reading import by_key, opened, read_all, surveyed


def write(tmp_path: Path, x: Any, y: Any, name: str = "") -> dict[str, Any]:
    np.save(tmp_path / f"x{name}.npy", x)
    np.save(tmp_path / f"y{name}.npy", y)
    return {"source": str(tmp_path / f"x{name}.npy"), "target": str(tmp_path / f"y{name}.npy")}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.dtype(">f4")])
def test_rows_are_those_of_the_arrays(tmp_path: Path, dtype: Any) -> None:
    x = np.arange(300).reshape(100, 3).astype(dtype)
    source = opened(**write(tmp_path, x, np.arange(100)), chunk_rows=30, holdout=0.2)
    assert (source.features, source.chunks, source.classes) == (3, 4, None)
    found = [source.read(chunk, split) for chunk in range(4) for split in ("train", "holdout")]
    assert all(batch.x.dtype == np.float32 and batch.y.dtype == np.float32 for batch in found)
    rows = np.concatenate([np.column_stack([batch.x, batch.y]) for batch in found])
    np.testing.assert_array_equal(rows[rows[:, 0].argsort()], np.column_stack([x, np.arange(100)]))


def test_rows_of_pictures_are_flattened(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_all(opened(**write(tmp_path, x, [0, 1]))).x, x.reshape(2, 12))
    assert read_all(opened(**write(tmp_path, [1.0, 2.0], [[0], [1]]))).x.tolist() == [[1], [2]]


def test_several_files_of_x_and_of_y(tmp_path: Path) -> None:
    for name in ("-1", "-2"):
        write(tmp_path, np.full((5, 2), int(name)), np.full(5, int(name)), name)
    files: dict[str, Any] = {"source": str(tmp_path / "x-*.npy"), "target": str(tmp_path / "y-*.npy")}
    assert read_all(opened(**files)).y.tolist() == [-1] * 5 + [-2] * 5
    with pytest.raises(DataError, match="2 files of x, but 1 of y"):
        opened(source=files["source"], target=str(tmp_path / "y-1.npy"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_has_both(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", x=np.arange(20.0).reshape(10, 2), y=np.arange(10))
    source = opened(source=str(tmp_path / "a.npz"), chunk_rows=3)
    assert source.chunks == 4
    assert read_all(source).y.tolist() == list(range(10))
    save(tmp_path / "b.npz", x=np.arange(3.0))
    with pytest.raises(DataError, match='no array "y"'):
        opened(source=str(tmp_path / "b.npz"))


def test_classes_are_labels_as_texts(tmp_path: Path) -> None:
    for labels in ([3, 1], [3.0, 1.0]):
        batch = read_all(opened(**write(tmp_path, [[1.0], [2.0]], labels), classes=("1", "3")))
        assert batch.y.tolist() == [1, 0]
        assert batch.y.dtype == np.int64


def test_nan_is_missing(tmp_path: Path) -> None:
    files = write(tmp_path, [[1.0, np.nan], [3.0, 4.0]], [0, 1])
    with pytest.raises(DataError, match=r"x\.npy, row 1: no value"):
        read_all(opened(**files))
    assert read_all(surveyed(opened(**files, missing="mean"))).x.tolist() == [[1, 4], [3, 4]]
    bad = opened(**write(tmp_path, [[1.0], [1e39], [2.0]], [0, 1, np.nan]), on_error="skip")
    assert read_all(bad).x.tolist() == [[1]]
    assert bad.skipped == {"number": 1, "target": 1}


def test_columns_can_have_keys(tmp_path: Path) -> None:
    batch = opened(**write(tmp_path, [[1.0, 2.0]], [0]), hashed=True).read(0, "train")
    assert sorted(by_key(batch)[0].values()) == [1, 2]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2), r"y\.npy: x is of shape \(3, 2\), but y of \(2,\)"),
        (np.zeros((0, 2)), np.zeros(0), "at least one example"),
        (np.asfortranarray(np.zeros((3, 2))), np.zeros(3), "column by column"),
        (np.array([["a"]]), np.zeros(1), "expected rows of numbers"),
        (np.float64(3), np.zeros(1), "expected rows of numbers"),
        (np.array([{}], object), np.zeros(1), "expected rows of numbers"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(**write(tmp_path, x, y))


def test_files_that_are_none(tmp_path: Path) -> None:
    files = write(tmp_path, np.zeros((30, 2)), np.zeros(30))
    with pytest.raises(DataError, match=r'target = "label" is no \.npy file'):
        opened(source=files["source"])
    with pytest.raises(IndexError, match="chunk 1 of"):
        opened(**files).read(1, "train")
    whole = Path(files["source"]).read_bytes()
    Path(files["source"]).write_bytes(whole[:-1])
    with pytest.raises(DataError, match="the file ends in its row"):
        opened(**files).read(0, "train")
    Path(files["source"]).write_bytes(b"1,2,3")
    with pytest.raises(DataError, match=r"not an \.npy file"):
        opened(**files)
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        opened(source=str(tmp_path / "a.npz"))


def test_rows_that_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path, np.zeros((3, 2)), np.zeros(3), "1")
    write(tmp_path, np.zeros((3, 4)), np.zeros(3), "2")
    with pytest.raises(DataError, match=r"x2\.npy: rows are of shape \(4,\), but of \(2,\) in .*x1\.npy"):
        opened(source=str(tmp_path / "x*.npy"), target=str(tmp_path / "y*.npy"))
