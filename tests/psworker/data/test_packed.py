import numpy as np
import pytest

from psworker.data.packed import PackedBatch, PackedRows

X = np.array(
    [[1, 2, 0, 1, -1], [3, 4, 2, 0, 0], [5, 6, 0, 0, 0]], np.float32
)  # the last: 1 - 1 in one column


@pytest.fixture
def batch() -> PackedBatch:
    rows = PackedRows(
        X[:, :2],
        np.array([[3, 2, 4], [4, 2, 4]]),
        np.array([[1, 1, 1], [-1, 1, -1]], np.float32),
        5,
    )
    return PackedBatch(rows, np.arange(3), np.array([1, 2, 3], np.float32))


def test_all_rows_are_written_out_when_they_are_asked_for(batch: PackedBatch) -> None:
    np.testing.assert_array_equal(batch.x, X)
    assert batch.x.dtype == np.float32
    assert batch.x.flags.c_contiguous
    assert batch.x is batch.x
    assert (len(batch), batch.total, batch.keys) == (3, 6.0, None)


@pytest.mark.parametrize("indices", [[2, 0], [1, 1], [0, 1, 2], []])
def test_taken_rows_are_written_out(batch: PackedBatch, indices: list[int]) -> None:
    taken = batch.take(np.array(indices, np.intp))
    np.testing.assert_array_equal(taken.x, X[indices])
    assert (taken.x.dtype, taken.x.flags.c_contiguous) == (np.float32, True)
    assert taken.y.tolist() == indices
    assert taken.weight is not None
    assert taken.weight.tolist() == [index + 1 for index in indices]
