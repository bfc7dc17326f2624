import numpy as np
import pytest
from sklearn.datasets import load_digits

from psworker.data import Batch, digits, open_source
from psworker.data.digits import open_digits
from psworker.errors import DataError
from psworker.job import DataSettings


def test_the_digits_are_all_there_in_order_and_scaled() -> None:
    source = open_source(DataSettings(chunk_rows=500), seed=0, holdout=0.0)
    assert (source.features, source.classes, source.chunks) == (64, 10, 4)
    batches = [source.read(chunk, "train") for chunk in range(4)]
    assert [len(batch) for batch in batches] == [500, 500, 500, 297]
    pixels, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(np.concatenate([b.x for b in batches]), pixels / 16)
    np.testing.assert_array_equal(np.concatenate([b.y for b in batches]), labels)
    assert batches[0].x.dtype == np.float32
    assert batches[0].y.dtype == np.int64
    assert batches[0].x.flags.c_contiguous


def test_train_and_holdout_are_all_rows_and_no_row_twice() -> None:
    whole = open_digits(DataSettings(), seed=5, holdout=0.0)
    split = open_digits(DataSettings(), seed=5, holdout=0.3)

    def rows(batch: Batch) -> list[bytes]:
        return [row.tobytes() for row in batch.x]

    for chunk in range(whole.chunks):
        both = rows(split.read(chunk, "train")) + rows(split.read(chunk, "holdout"))
        assert sorted(both) == sorted(rows(whole.read(chunk, "train")))
        assert len(whole.read(chunk, "holdout")) == 0


@pytest.mark.parametrize("chunk", [-1, 4])
def test_a_chunk_that_is_not_there(chunk: int) -> None:
    with pytest.raises(IndexError, match=f"chunk {chunk} of examples"):
        open_digits(DataSettings(), seed=0, holdout=0.0).read(chunk, "train")


def test_no_column_cuts_the_digits_into_parts() -> None:
    with pytest.raises(IndexError, match="part 0 of a chunk of examples"):
        open_digits(DataSettings(), seed=0, holdout=0.0).read(0, "train", 0)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'asyncps\[digits\]'"):
        open_digits(DataSettings(), seed=0, holdout=0.0)


@pytest.mark.parametrize("source", ["digit", "a.parq", "a.gz", "-", "csv"])
def test_a_source_of_no_known_kind(source: str) -> None:
    with pytest.raises(DataError, match=r"digits or the name of a file that ends in \.csv, "):
        open_source(DataSettings(source=source), seed=0, holdout=0.0)
