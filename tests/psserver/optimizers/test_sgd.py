from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import BadRequest
from protocol.optimizers import SGD, spec_of
from psserver.optimizers import update_of

FLOATS = st.floats(-1e3, 1e3, width=16)


@given(
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    lr=st.floats(1e-3, 10.0),
    data=st.data(),
)
def test_equals_the_equation(dtype: type[np.floating[Any]], lr: float, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 20))
    values = data.draw(hnp.arrays(dtype, size, elements=FLOATS))
    gradient = data.draw(hnp.arrays(dtype, size, elements=FLOATS))
    before = values.copy()
    expected = values.astype(np.float64) - lr * gradient.astype(np.float64)
    update_of(SGD(lr))(values, gradient)
    # Three roundings: of lr, of the product, which may be subnormal, and of the sum.
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).smallest_normal)
    bound = 3 * eps * (np.abs(values) + 2 * np.abs(expected - values)) + tiny
    assert gradient.dtype == dtype
    assert (np.abs(gradient - expected) <= bound).all()
    np.testing.assert_array_equal(values, before)


def test_steps_against_the_gradient() -> None:
    values, gradient = np.array([1.0, 1.0]), np.array([2.0, -4.0])
    update_of(SGD(0.5))(values, gradient)
    np.testing.assert_array_equal(gradient, [0.0, 3.0])


@pytest.mark.parametrize("lr", [0, -1.0, float("nan"), float("inf"), "0.1", None, 10**400])
def test_absurd_learning_rates_are_refused(lr: float) -> None:
    with pytest.raises(BadRequest, match="finite number above 0") as caught:
        SGD(lr)
    assert caught.value.field == "lr"


def test_the_name_on_the_wire() -> None:
    spec = spec_of(SGD(0.5))
    assert (spec.name, [(s.name, s.value) for s in spec.settings]) == ("sgd", [("lr", 0.5)])
