import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psworker.data.split import rows_of
from psworker.job import Fold

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """Vigna's splitmix64.c, in integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_reference_is_splitmix64() -> None:
    # The published first outputs of the generator seeded with 1234567.
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    st.integers(0, 300),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**40),
    st.floats(0, 1, exclude_max=True),
)
def test_rows_are_split_as_specified_and_exactly(count: int, seed: int, chunk: int, holdout: float) -> None:
    held_out = rows_of("holdout", count, seed=seed, chunk=chunk, holdout=holdout)
    train = rows_of("train", count, seed=seed, chunk=chunk, holdout=holdout)
    key = splitmix64(splitmix64(seed) ^ chunk)
    assert held_out.tolist() == [r for r in range(count) if splitmix64(key ^ r) < holdout * 2**64]
    assert sorted([*held_out, *train]) == list(range(count))


def test_holdout_0_trains_on_everything() -> None:
    assert len(rows_of("train", 1000, seed=0, chunk=0, holdout=0)) == 1000


@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.7])
def test_the_fraction_is_about_right_and_differs_by_chunk(holdout: float) -> None:
    parts = [rows_of("holdout", 10_000, seed=3, chunk=c, holdout=holdout) for c in range(4)]
    for part in parts:
        # Five standard deviations of a binomial; the hash is fixed, so this cannot flicker.
        assert abs(len(part) - 10_000 * holdout) < 5 * (10_000 * holdout * (1 - holdout)) ** 0.5
    assert not np.array_equal(parts[0], parts[1])


@given(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(2, 1000))
def test_every_row_is_in_one_fold_exactly(count: int, seed: int, chunk: int, of: int) -> None:
    key = splitmix64(splitmix64(seed) ^ chunk)
    folds = [splitmix64(key ^ row) * of >> 64 for row in range(count)]  # from 0 on
    for fold in {*folds, 0, of - 1}:
        where = {"seed": seed, "chunk": chunk, "holdout": Fold(fold + 1, of)}
        held_out = rows_of("holdout", count, **where).tolist()  # type: ignore[arg-type]
        train = rows_of("train", count, **where).tolist()  # type: ignore[arg-type]
        assert held_out == [row for row in range(count) if folds[row] == fold]
        assert sorted(held_out + train) == list(range(count))


def test_folds_are_about_equal_and_the_first_of_four_is_a_quarter() -> None:
    folds = [rows_of("holdout", 10_000, seed=1, chunk=2, holdout=Fold(n, 4)) for n in (1, 2, 3, 4)]
    assert sum(map(len, folds)) == 10_000
    assert all(abs(len(fold) - 2500) < 5 * (10_000 * 0.25 * 0.75) ** 0.5 for fold in folds)
    assert folds[0].tolist() == rows_of("holdout", 10_000, seed=1, chunk=2, holdout=0.25).tolist()
