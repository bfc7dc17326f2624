import math
from dataclasses import dataclass

import pytest

from protocol.errors import BadRequest
from psserver.saved_state import AnyNumber, SavedState, as_text, check_once, check_saved
from tests.psserver.saved_states import through_json


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    label: AnyNumber


@dataclass(frozen=True, slots=True)
class Row:
    points: tuple[Point | None, ...]
    width: AnyNumber | None


ROW = SavedState(Row)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 1e300, 5e-324, math.inf, -math.inf, math.nan, 3])
def test_every_number_survives_as_text(value: float) -> None:
    row = Row((Point(1, as_text(value)), None), as_text(value))
    again = ROW.checked(through_json(ROW.plain(row)))
    assert again == row
    assert repr(float(again.width or "")) == repr(float(value))


@pytest.mark.parametrize("text", ["", "one", "1", "1.50", "Infinity", "1_0.0", " 1.0", "0x1p0"])
def test_no_other_text_is_a_number(text: str) -> None:
    with pytest.raises(BadRequest, match="a number as text") as caught:
        ROW.checked({"points": [], "width": text})
    assert (caught.value.field, caught.value.value) == ("width", text)


@pytest.mark.parametrize(
    ("state", "field"),
    [
        ([], "state"),
        (None, "state"),
        ({"points": []}, "width"),
        ({"points": [], "width": None, "more": 1}, "more"),
        ({"points": {}, "width": None}, "points"),
        ({"points": [[1]], "width": None}, "points"),
        ({"points": [[-1, "1.0"]], "width": None}, "x"),
        ({"points": [[True, "1.0"]], "width": None}, "x"),
        ({"points": [[1, 1.0]], "width": None}, "label"),
    ],
)
def test_what_is_no_state_is_refused_by_its_field(state: object, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ROW.checked(state)
    assert caught.value.field == field


def test_reading_a_state_leaves_it_as_it_is() -> None:
    state = {"points": [[1, "1.0"]], "width": None}
    assert ROW.checked(state) == ROW.checked(state)


def test_what_comes_twice_is_refused() -> None:
    check_once(["a", "b"], "names")
    with pytest.raises(BadRequest, match="each once") as caught:
        check_once(["a", "b", "a"], "names")
    assert caught.value.field == "names"


def test_what_was_expected_is_named() -> None:
    check_saved(True, "a square", "shape", 3)
    with pytest.raises(BadRequest, match="expected a square") as caught:
        check_saved(False, "a square", "shape", 3)
    assert (caught.value.field, caught.value.value) == ("shape", "3")
