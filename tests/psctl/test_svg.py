import math
import re
from xml.etree import ElementTree

import pytest

from psctl.svg import line_chart, scatter, share_bars

SHOW = "{:g}".format


def texts(drawn: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(drawn).iter("text")]


def test_a_line_is_drawn_to_scale() -> None:
    drawn = line_chart("loss", {"w": [(0.0, 0.0), (1.0, 1.0), (2.0, 4.0)]}, x_label="seconds", show=SHOW)
    (path,) = ElementTree.fromstring(drawn).iter("path")
    places = [tuple(map(float, place)) for place in re.findall(r"([\d.]+),([\d.]+)", path.attrib["d"])]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.5), "up is more"
    assert texts(drawn) == ["0", "1", "2", "3", "4", "0", "2", "seconds"]


def test_what_is_not_finite_is_left_out() -> None:
    points = [(0.0, math.nan), (1.0, 2.0), (2.0, math.inf), (3.0, 4.0)]
    drawn = line_chart("loss", {"w": points}, x_label="s", show=SHOW)
    (path,) = ElementTree.fromstring(drawn).iter("path")
    assert path.attrib["d"].count("L") == 1


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)]])
def test_where_nothing_was_measured_that_is_said(points: list[tuple[float, float]]) -> None:
    assert texts(line_chart("loss", {"w": points}, x_label="s", show=SHOW)) == ["nothing was measured"]


@pytest.mark.parametrize("value", [0.0, 1e-9, 5.0, -3.0, 1e12])
def test_a_single_or_a_constant_value_has_a_scale_around_it(value: float) -> None:
    single = line_chart("x", {"w": [(1.0, value)]}, x_label="s", show=SHOW)
    assert len(list(ElementTree.fromstring(single).iter("circle"))) == 1
    constant = line_chart("x", {"w": [(1.0, value), (2.0, value)]}, x_label="s", show=SHOW)
    marks = [float(text) for text in texts(constant)[:-3]]
    assert marks[0] < value < marks[-1]


def test_steps_hold_their_value_until_the_next() -> None:
    drawn = line_chart("lag", {"lag": [(0.0, 0.0), (1.0, 3.0)]}, x_label="s", show=SHOW, steps=True)
    (path,) = ElementTree.fromstring(drawn).iter("path")
    assert re.fullmatch(r"M[\d.]+,[\d.]+H[\d.]+V[\d.]+", path.attrib["d"])


def test_bars_are_cut_by_shares_and_texts_are_no_markup() -> None:
    drawn = share_bars("time", {"<b>": {"push": 1.0, "pull": 3.0}, "idle": {}}, show=SHOW)
    widths = [float(rect.attrib["width"]) for rect in ElementTree.fromstring(drawn).iter("rect")][:2]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.3)
    assert texts(drawn) == ["<b>", "4", "idle", "0", "push", "pull"]


def dots(drawn: str) -> dict[str, tuple[float, float]]:
    found = {}
    for dot in ElementTree.fromstring(drawn).iter("circle"):
        (title,) = dot.iter("title")
        found[title.text or ""] = (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
    return found


def test_dots_are_at_their_logarithm_and_the_best_is_another_colour() -> None:
    points = {"a": (0.01, 1.0), "b": (0.1, 2.0), "c": (1.0, 3.0), "gone": (1.0, math.nan)}
    drawn = scatter("rates", points, x_label="lr", show=SHOW, best="b", log=True)
    found = dots(drawn)
    assert list(found) == ["a: 1", "c: 3", "b: 2"], "the best is drawn last, above the others"
    (ax, ay), (bx, by), (cx, cy) = found["a: 1"], found["b: 2"], found["c: 3"]
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)
    assert ay > by > cy
    assert {"0.01", "1", "lr"} <= set(texts(drawn))
    colours = [dot.attrib["fill"] for dot in ElementTree.fromstring(drawn).iter("circle")]
    assert colours[0] == colours[1] != colours[2]


def test_dots_without_a_logarithm_are_where_they_are() -> None:
    drawn = scatter("x", {"a": (0, 1.0), "b": (1, 1.5), "c": (4, 2.0)}, x_label="x", show=SHOW, best="a")
    (ax, _), (bx, _), (cx, _) = (dots(drawn)[name] for name in ("a: 1", "b: 1.5", "c: 2"))
    assert cx - ax == pytest.approx(4 * (bx - ax), abs=0.5)
    nothing = scatter("x", {"a": (0, math.inf)}, x_label="x", show=SHOW, best="a")
    assert texts(nothing) == ["nothing was measured"]
