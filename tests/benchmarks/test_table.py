import io

import pytest
from rich.console import Console

from benchmarks.rounds import Point, Report, Row, Settings
from benchmarks.table import as_json, print_rich, render_text

LARGE, SMALL = 100_000_000, 1000


def made_up_report() -> Report:
    ceiling = {
        Point(LARGE, "push"): [0.025, 0.050, 0.020],
        Point(LARGE, "pull"): [0.025, 0.025, 0.025],
        Point(LARGE, "push_pull"): [0.050, 0.050, 0.050],
        Point(SMALL, "push"): [50e-6, 60e-6, 40e-6],
        Point(SMALL, "pull"): [50e-6, 50e-6, 50e-6],
        Point(SMALL, "push_pull"): [50e-6, 50e-6, 50e-6],
    }
    half_as_fast = {point: [2 * taken for taken in series] for point, series in ceiling.items()}
    only_small = {Point(SMALL, "push_pull"): [100e-6, 200e-6, 400e-6]}
    return Report(
        Settings(sizes=(LARGE, SMALL), repeat=3, seconds=0.5),
        rows=(
            Row("raw-tcp", "raw TCP (ceiling)", ceiling),
            Row("slow", "a slow one", half_as_fast),
            Row("echo", "an echo", only_small),
        ),
        skipped={"ray": "not installed, skipped (pip install 'asyncps[peers]')"},
        failed={"torch": "RuntimeError: no"},
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_text_has_rates_for_large_and_times_for_small_tensors() -> None:
    lines = render_text(made_up_report()).splitlines()
    assert cells(lines[0]) == ["100 MB GB/s"] * 3 + ["1 KB µs"] * 3
    assert cells(lines[1]) == ["system", *("push", "pull", "push_pull") * 2]
    assert cells(lines[2]) == ["raw TCP (ceiling)", *["4.00"] * 3, *["50.0"] * 2, "50.0"]
    assert cells(lines[5]) == ["a slow one", "2.00", "2.00", "2.00", *["100.0"] * 3]


def test_spread_goes_from_the_lower_to_the_higher_figure() -> None:
    lines = render_text(made_up_report()).splitlines()
    assert cells(lines[3])[0] == "2.00 - 5.00"
    assert cells(lines[3])[3] == "40.0 - 60.0"


def test_ratio_is_the_median_over_the_rounds() -> None:
    lines = render_text(made_up_report()).splitlines()
    assert cells(lines[4]) == ["100%"] * 6
    assert cells(lines[7]) == ["50%"] * 6
    assert cells(lines[8]) == ["an echo", *["-"] * 5, "200.0"]
    assert cells(lines[10]) == ["25%"]


def test_text_names_what_is_missing_and_why() -> None:
    text = render_text(made_up_report())
    assert "\nray: not installed, skipped (pip install 'asyncps[peers]')" in text
    assert "\ntorch: failed, RuntimeError: no" in text


def test_json_has_the_raw_figure_of_every_round() -> None:
    report = as_json(made_up_report())
    assert report["skipped"] == {"ray": "not installed, skipped (pip install 'asyncps[peers]')"}
    assert report["failed"] == {"torch": "RuntimeError: no"}
    slow = report["systems"][1]
    assert slow["name"] == "slow"
    assert slow["points"][0] == {
        "bytes": LARGE,
        "operation": "push",
        "seconds_per_operation": [0.050, 0.100, 0.040],
        "ratios_to_ceiling": [0.5, 0.5, 0.5],
        "median": 0.050,
        "least": 0.040,
        "most": 0.100,
        "ratio_to_ceiling": 0.5,
    }
    assert len(report["systems"][2]["points"]) == 1


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2)])
def test_terminal_too_narrow_gets_a_table_a_size(width: int, tables: int) -> None:
    stream = io.StringIO()
    print_rich(made_up_report(), Console(file=stream, width=width))
    shown = stream.getvalue()
    assert shown.count("system") == tables
    assert shown.count("…") == 0
    assert "2.00 - 5.00" in shown
