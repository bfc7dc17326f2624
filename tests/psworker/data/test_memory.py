import numpy as np
import pytest
from scipy.sparse import csr_array

from psworker.data.batch import Batch
from psworker.data.memory import MemorySource


def examples(count: int) -> Batch:
    rows = np.arange(count, dtype=np.float32)
    return Batch(np.column_stack([rows, 2 * rows]), rows, weight=rows + 1)


def test_chunks_and_splits_are_all_rows_once_with_their_weights() -> None:
    source = MemorySource(examples(50), 7, seed=3, holdout=0.3)
    assert (source.features, source.classes, source.chunks, source.hashed) == (2, None, 8, False)
    pieces = [source.read(chunk, split) for chunk in range(8) for split in ("train", "holdout")]
    assert sorted(np.concatenate([piece.y for piece in pieces])) == list(range(50))
    for piece in pieces:
        assert piece.weight is not None
        np.testing.assert_array_equal(piece.x[:, 1], 2 * piece.y)
        np.testing.assert_array_equal(piece.weight, piece.y + 1)
    assert 5 < sum(len(source.read(chunk, "holdout")) for chunk in range(8)) < 25


def test_hashed_rows_have_the_features_that_they_have() -> None:
    x = csr_array(np.array([[1, 0, 2], [0, 3, 0], [0, 0, 4]], np.float32))
    keys = np.array([5, 6, 7], np.uint64)
    source = MemorySource(Batch(x, np.zeros(3, np.int64), keys), 2, classes=2)
    assert (source.features, source.hashed, source.classes) == (0, True, 2)
    last = source.read(1, "train")
    assert last.keys is not None
    assert (last.keys.tolist(), last.x.toarray().tolist()) == ([7], [[4]])


def test_what_is_not_there() -> None:
    source = MemorySource(examples(3), 2)
    for chunk, part, message in ((2, None, "chunk 2 of"), (-1, None, "chunk -1 of"), (0, 0, "part 0 of")):
        with pytest.raises(IndexError, match=message):
            source.read(chunk, "train", part)
    with pytest.raises(ValueError, match="at least one row"):
        MemorySource(examples(0), 2)
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        MemorySource(examples(3), 0)
