from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from psworker.data import Batch
from psworker.errors import DataError, ModelError
from psworker.models.calls import gradients_of, measures_of

PARAMETERS = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
BATCH = Batch(np.ones((2, 3), np.float32), np.ones(2, np.float32))
GOOD = {"w": np.ones(3, np.float32), "b": np.float32(1)}


class Returning:
    """A model whose gradients are whatever it was made with."""

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        return dict(PARAMETERS)

    def gradients(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> Any:
        if isinstance(self._returned, Exception):
            raise self._returned
        return self._returned

    evaluate = gradients


class Overflowing(Returning):
    """A model whose arithmetic leaves the range of its numbers."""

    def gradients(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> Any:
        large = np.full(3, 3e38, np.float32)
        return {"w": large * 10 - large * 10}, float("inf")

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> Any:
        return {"loss": (np.full(1, 3e38, np.float32) * 10)[0]}


@pytest.mark.filterwarnings("error")
def test_of_what_overflows_only_the_values_tell() -> None:
    gradients, loss = gradients_of(Overflowing(None), PARAMETERS, BATCH)
    assert np.isnan(gradients["w"]).all()
    assert loss == np.inf
    assert measures_of(Overflowing(None), PARAMETERS, BATCH) == {"loss": np.inf}


def test_what_a_model_returns_is_returned() -> None:
    gradients, loss = gradients_of(Returning((GOOD, np.float32(0.5))), PARAMETERS, BATCH)
    assert gradients is GOOD
    assert type(loss) is float
    assert loss == 0.5
    assert gradients_of(Returning(({"w": GOOD["w"]}, 1)), PARAMETERS, BATCH) == ({"w": GOOD["w"]}, 1.0)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returned NoneType"),
        (GOOD, "returned dict"),
        (([1.0], 0.5), "returned tuple"),
        (({"ww": GOOD["w"]}, 0.5), "'ww'; the parameters are w, b"),
        (({"w": np.ones(2, np.float32)}, 0.5), r"'w' of shape \(2,\)"),
        (({"w": np.ones(3)}, 0.5), "dtype float64"),
        (({"w": [1.0, 2.0, 3.0]}, 0.5), "dtype float64"),
        ((GOOD, "0.5"), "returned str as the loss"),
        ((GOOD, None), "returned NoneType as the loss"),
        (NameError("name 'x' is not defined"), "raised NameError: name 'x' is not defined"),
        (ZeroDivisionError(), "raised ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_said_with_the_models_name(returned: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says) as error:
        gradients_of(Returning(returned), PARAMETERS, BATCH)
    assert "Returning.gradients" in str(error.value)
    if isinstance(returned, Exception):
        assert error.value.__cause__ is returned


def test_labels_without_a_class_are_the_datas_fault() -> None:
    with pytest.raises(DataError):
        gradients_of(Returning(DataError("labels", None, "no class 7")), PARAMETERS, BATCH)


def test_what_a_model_measures_is_returned_as_floats() -> None:
    measures = measures_of(Returning({"loss": np.float32(0.5), "rows": 2}), PARAMETERS, BATCH)
    assert measures == {"loss": 0.5, "rows": 2.0}
    assert {type(value) for value in measures.values()} == {float}


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returned None; it returns numbers by name"),
        (0.5, "returned 0.5"),
        ({"loss": "0.5"}, "returned {'loss': '0.5'}"),
        ({"loss": np.ones(2)}, "returned"),
        (KeyError("w"), "raised KeyError: 'w'"),
    ],
)
def test_what_is_wrong_in_evaluate_is_said_with_the_models_name(returned: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says) as error:
        measures_of(Returning(returned), PARAMETERS, BATCH)
    assert "Returning.evaluate" in str(error.value)
