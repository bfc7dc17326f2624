"""Curves in Braille characters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psctl.chart import Scale, chart, scale_of

UNIT = Scale(0.0, 1.0)
MEASURED = st.lists(st.none() | st.floats(allow_nan=True), max_size=60)


@pytest.mark.parametrize(
    ("values", "from_zero", "scale"),
    [
        ([], False, (0.0, 1.0)),
        ([None, math.nan], False, (0.0, 1.0)),
        ([2.0, 3.0], False, (2.0, 3.0)),
        ([1.0, 3.0], False, (0.0, 3.0)),  # so near to 0 that it may as well begin there
        ([2.0, 3.0], True, (0.0, 3.0)),
        ([-3.0, -2.0], False, (-3.0, -2.0)),
        ([-3.0, -2.0], True, (-3.0, 0.0)),
        ([5.0, None, 5.0, math.inf], False, (2.5, 7.5)),
        ([0.0], True, (0.0, 1.0)),
    ],
)
def test_the_scale_of_values(values: list[float | None], from_zero: bool, scale: tuple[float, float]) -> None:
    assert scale_of(values, from_zero=from_zero) == scale


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([], ["⠀⠀"]),
        ([None, None], ["⠀⠀"]),
        ([1.0], ["⠉⠉"]),  # all of the width is for what there is
        ([0.0, 0.0, 0.0, 0.0], ["⣀⣀"]),
        ([0.0, 1.0], ["⡠⠊"]),
        ([0.0, 0.0, 1.0, 1.0], ["⣀⠏"]),  # what is far apart is joined
        ([2.0, -2.0, 2.0, 2.0], ["⢱⠏"]),  # what is beyond the scale is at its edge
    ],
)
def test_a_curve_of_one_line(values: list[float | None], lines: list[str]) -> None:
    assert chart(values, 2, 1, UNIT) == lines


def test_a_gap_is_empty() -> None:
    assert chart([0.0, None, 1.0], 3, 1, UNIT) == ["⣀⠀⠉"]
    assert chart([0.0, math.nan, 1.0], 3, 1, UNIT) == ["⣀⠀⠉"]


def test_of_more_values_than_dots_means_are_drawn() -> None:
    assert chart([0.0] * 8 + [1.0] * 4 + [0.0] * 4, 1, 1, UNIT) == chart([0.0, 0.5], 1, 1, UNIT)


def test_a_curve_of_several_lines() -> None:
    assert chart([0.0, 1.0], 1, 2, UNIT) == ["⢸", "⡸"]


def test_a_filled_curve_reaches_down() -> None:
    assert chart([1.0, 0.5], 1, 1, Scale(0.0, 1.5), filled=True) == ["⣦"]


@given(MEASURED, st.integers(1, 20), st.integers(1, 5), st.booleans())
def test_any_values_make_a_chart_of_that_size(
    values: list[float | None], columns: int, rows: int, filled: bool
) -> None:
    lines = chart(values, columns, rows, scale_of(values, from_zero=filled), filled=filled)
    assert [len(line) for line in lines] == [columns] * rows
    assert all(0x2800 <= ord(character) < 0x2900 for line in lines for character in line)
