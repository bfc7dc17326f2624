from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_array

from psworker.data import Batch
from psworker.units import Units, order_of


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("shuffle", ["chunk", "none", "window:1", "window:4", "window:100"])
@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_an_order_has_each_row_once_and_follows_from_the_seed(shuffle: str, count: int) -> None:
    order = order_of(shuffle, count, rng())
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, order_of(shuffle, count, rng()))


def test_orders_are_what_their_names_say() -> None:
    plain = list(range(1000))
    assert order_of("none", 1000, rng()).tolist() == plain
    assert order_of("window:1", 1000, rng()).tolist() == plain
    assert order_of("chunk", 1000, rng()).tolist() != plain
    window = order_of("window:10", 1000, rng())
    early = np.arange(1000) - window  # no row comes earlier than its window reaches
    assert early.min() == -9
    assert early.max() > 10  # and some wait for long


def test_the_next_row_is_any_of_the_window_alike() -> None:
    firsts = Counter(
        int(order_of("window:4", 20, generator)[0]) for generator in map(np.random.default_rng, range(4000))
    )
    assert set(firsts) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 130 for count in firsts.values())  # 4.7 standard deviations


def test_units_are_the_rows_in_order() -> None:
    chunk = Batch(np.arange(7, dtype=np.float32)[:, np.newaxis], np.arange(7, dtype=np.float32))
    units = Units(chunk, np.array([6, 0, 5, 1, 4, 2, 3]), 3)
    assert len(units) == 3
    assert [units[number].y.tolist() for number in range(3)] == [[6, 0, 5], [1, 4, 2], [3]]
    assert units.keys(0) is None
    assert len(Units(chunk.take(np.arange(0)), np.arange(0), 3)) == 0


def test_units_of_hashed_features_know_their_keys_and_none_beyond_the_end() -> None:
    x = csr_array(np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], np.float32))
    chunk = Batch(x, np.zeros(3, np.float32), np.array([5, 7, 9], np.uint64))
    units = Units(chunk, np.array([2, 0, 1]), 1)
    found = [units.keys(number) for number in (0, 1, 2, 3)]
    assert [None if keys is None else keys.tolist() for keys in found] == [[7, 9], [5], [7], []]
    assert units[1] is units[1]  # what was looked ahead at is not cut again
