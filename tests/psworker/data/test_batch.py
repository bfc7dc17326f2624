import numpy as np
import pytest

from psworker.data import Batch, minibatches
from psworker.data.batch import require_rows


def batch(n: int) -> Batch:
    return Batch(np.arange(2 * n, dtype=np.float32).reshape(n, 2), np.arange(n, dtype=np.int64))


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 9, [3]), (0, 4, [])]
)
def test_minibatches_have_each_row_once(n: int, size: int, sizes: list[int]) -> None:
    cut = list(minibatches(batch(n), size, np.random.default_rng(0)))
    assert [len(piece) for piece in cut] == sizes
    rows = np.concatenate([piece.y for piece in cut]) if cut else np.empty(0)
    assert sorted(rows) == list(range(n))
    for piece in cut:
        np.testing.assert_array_equal(piece.x[:, 0], 2 * piece.y)
        assert piece.x.flags.c_contiguous


def test_minibatches_are_shuffled_by_the_generator_alone() -> None:
    def order(seed: int) -> list[int]:
        pieces = minibatches(batch(100), 7, np.random.default_rng(seed))
        return [int(row) for piece in pieces for row in piece.y]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(100))


def test_a_size_below_one() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        next(minibatches(batch(3), 0, np.random.default_rng(0)))


def test_take_keeps_types_and_order() -> None:
    taken = batch(5).take(np.array([3, 1]))
    assert taken.y.tolist() == [3, 1]
    assert taken.x.dtype == np.float32
    assert taken.y.dtype == np.int64


def test_an_empty_batch_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no rows"):
        require_rows(batch(0))


def sparse(rows: list[dict[int, float]], keys: list[int]) -> Batch:
    """Rows of hashed features, each with the numbers of its columns."""
    sparse_array = pytest.importorskip("scipy.sparse").csr_array
    ends = np.cumsum([0, *map(len, rows)])
    columns = [column for row in rows for column in row]
    values = np.array([value for row in rows for value in row.values()], np.float32)
    x = sparse_array((values, columns, ends), shape=(len(rows), len(keys)))
    return Batch(x, np.arange(len(rows)), np.array(keys, np.uint64))


@pytest.mark.parametrize(
    "rows",
    [
        [{0: 1, 2: 2}, {3: 3, 0: 4}, {1: 5, 2: 6}, {2: 7, 4: 8}],  # as many each
        [{0: 1}, {}, {3: 2, 0: 3, 4: 4}, {2: 5, 1: 6}],  # as many on average
        [{}, {0: 1, 2: 2}, {3: 3}, {}],
        [{}, {}, {}, {}],
    ],
)
@pytest.mark.parametrize("taken", [[2, 0], [3, 2, 1, 0], [1], [1, 1, 3], []])
def test_taken_rows_have_the_features_that_they_need(rows: list[dict[int, float]], taken: list[int]) -> None:
    keys = [10, 20, 30, 40, 1 << 63]
    batch = sparse(rows, keys).take(np.array(taken, np.intp))
    expected = sorted({keys[column] for row in taken for column in rows[row]})
    assert batch.keys is not None
    assert batch.keys.tolist() == expected
    assert (batch.x.shape, batch.x.dtype) == ((len(taken), len(expected)), np.float32)
    wide = np.zeros((len(taken), len(keys)), np.float32)
    for place, row in enumerate(taken):
        for column, value in rows[row].items():
            wide[place, column] = value
    used = [keys.index(key) for key in expected]
    np.testing.assert_array_equal(batch.x.toarray(), wide[:, used])
    assert batch.y.tolist() == taken
