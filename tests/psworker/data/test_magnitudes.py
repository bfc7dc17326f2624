from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psworker.data import Source
from psworker.data.batch import Batch
from psworker.data.magnitudes import unscaled
from psworker.data.memory import MemorySource
from tests.psworker.data.reading import opened


def source(tmp_path: Path, *columns: float, **data: Any) -> Source:
    """A table whose every column has one number, with either sign."""
    names = [*"abcdefg"[: len(columns)], "label"]
    rows = [",".join([*(f"{sign * number}" for number in columns), "0"]) for sign in (1, -1) * 5]
    (tmp_path / "a.csv").write_text("\n".join([",".join(names), *rows, ""]))
    return opened(source=str(tmp_path / "a.csv"), **data)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ((50_000, 2), 'numbers of column "a" are about 5e+04, those of column "b" about 2: set [data] scale'),
        ((1, 0.001, 0.5), 'numbers of column "a" are about 1, those of column "b" about 0.001: set'),
        ((0, 300), 'numbers of column "b" are about 3e+02: set [data] scale = "standard"'),
        ((1, 5, 99), ""),
        ((0, 0), ""),
    ],
)
def test_columns_that_are_large_or_unlike_are_named(
    tmp_path: Path, columns: tuple[float, ...], words: str
) -> None:
    found = unscaled(source(tmp_path, *columns))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_what_is_scaled_has_no_large_columns(tmp_path: Path) -> None:
    assert unscaled(source(tmp_path, 50_000, 2, scale="standard")) == ""


def test_numbers_that_are_missing_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,label\n400,1\n,1\n400,1\n")
    assert "are about 4e+02" in unscaled(opened(source=str(tmp_path / "a.csv"), missing="mean"))


def test_columns_without_names_are_counted_from_1(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([[1.0, 1e6], [1.0, 1e6]]), y=np.zeros(2))
    found = unscaled(opened(source=str(tmp_path / "a.npz")))
    assert found.startswith("numbers of column 2 are about 1e+06, those of column 1 about 1")


def test_of_examples_in_memory_nothing_is_said() -> None:
    batch = Batch(np.full((4, 1), 1e6, np.float32), np.zeros(4, np.float32))
    assert unscaled(MemorySource(batch, chunk_rows=2)) == ""
