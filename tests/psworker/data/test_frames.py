import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psworker.data.frames import batch_of_frame
from psworker.errors import DataError
from tests.psworker.data.reading import by_key, opened

pd = pytest.importorskip("pandas")

COLUMNS: dict[str, Any] = {
    "age": [20, 31, 40],
    "city": ["Rome", None, "Rome"],
    "shop": [3.0, float("nan"), 4.0],
    "review": ["Good good", "", "été"],
    "label": ["u", "v", "u"],
}


class Column(list[Any]):
    def to_numpy(self) -> Any:
        return np.array(self, object if any(value is None for value in self) else None)


class Frame:
    """What polars and others have in common with pandas."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> Column:
        return Column(self._columns[name])


@pytest.mark.parametrize("frame", [pd.DataFrame, Frame])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_frame_has_the_features_of_a_file_of_its_rows(tmp_path: Path, frame: Any, hashed: bool) -> None:
    (tmp_path / "a.csv").write_text(
        "age,city,shop,review,label\n20,Rome,3,Good good,u\n31,,,,v\n40,Rome,4,été,u\n"
    )
    data: dict[str, Any] = {"categorical": ("city", "shop"), "text": ("review",), "classes": ("v", "u")}
    data |= {"hashed": hashed, "hash_buckets": 8}
    batch = batch_of_frame(frame(COLUMNS), target="label", **data)
    expected = opened(source=str(tmp_path / "a.csv"), **data).read(0, "train")
    assert batch.y.tolist() == expected.y.tolist() == [1, 0, 1]
    if hashed:
        assert by_key(batch) == by_key(expected)
    else:
        np.testing.assert_array_equal(batch.x, expected.x)


def test_numbers_and_what_is_missing() -> None:
    frame = pd.DataFrame({"a": pd.array([1, None, 3], "Int64"), "b": [0.5, 1.5, None], "y": [1, 2, 3]})
    with pytest.raises(DataError, match='data frame, row 2, column "a": no value'):
        batch_of_frame(frame, target="y")
    batch = batch_of_frame(frame, target="y", missing="zero")
    assert batch.x.tolist() == [[1, 0.5], [0, 1.5], [3, 0]]
    assert batch.y.tolist() == [1, 2, 3]
    assert frame["b"].isna().sum() == 1  # it is as it was


def test_columns_are_chosen_and_ordered_and_need_no_target() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": ["x", "y"]})
    batch = batch_of_frame(frame, target=None, columns=("b", "a"))
    assert (batch.x.tolist(), batch.y.tolist()) == ([[3, 1], [4, 2]], [0, 0])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"a": ["x"], "y": [1]}, 'column "a": is no number'),
        ({"a": pd.to_datetime(["2026-01-01"]), "y": [1]}, 'column "a": is a time'),
        ({"a": [1], "z": [1]}, 'no column "y"; known: a, z'),
        ({"a": [np.inf], "y": [1]}, 'row 1, column "a": is not finite'),
        ({"a": [1], "y": [np.nan]}, 'row 1, column "y": no value'),
    ],
)
def test_frames_that_cannot_be_used(frame: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        batch_of_frame(pd.DataFrame(frame), target="y")


def test_neither_pandas_nor_polars_nor_pyarrow_is_imported() -> None:
    heavy = "{'pandas', 'polars', 'pyarrow', 'scipy'}"
    check = f"import sys, psworker.data.frames; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
