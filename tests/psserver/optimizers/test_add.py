from typing import Any

import numpy as np
import pytest

from protocol.optimizers import Add
from protocol.tensors import DTYPES
from psserver.optimizers import update_of


@pytest.mark.parametrize("name", DTYPES)
def test_equals_numpy_for_every_dtype(name: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 100, 1000).astype(DTYPES[name])
    delta = rng.integers(0, 27, 1000).astype(DTYPES[name])
    before, expected = values.copy(), values + delta
    update_of(Add())(values, delta)
    np.testing.assert_array_equal(delta, expected)
    assert delta.dtype == DTYPES[name]
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("dtype", "value", "delta", "expected"),
    [(np.uint8, 255, 1, 0), (np.int8, 127, 1, -128), (np.uint64, 0, 2**64 - 1, 2**64 - 1)],
)
def test_integers_wrap_around_as_numpys_do(dtype: Any, value: int, delta: int, expected: int) -> None:
    deltas = np.array([delta], dtype)
    update_of(Add())(np.array([value], dtype), deltas)
    assert deltas[0] == expected
