import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psworker.data.split import rows_of

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
