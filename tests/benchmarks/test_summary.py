import pytest

from benchmarks.summary import Summary, speed_ratios, summarize


def test_summary_is_the_middle_and_the_extremes() -> None:
    assert summarize([3.0, 1.0, 10.0]) == Summary(median=3.0, least=1.0, most=10.0)


def test_even_number_of_figures_has_the_mean_of_the_two_middle_ones() -> None:
    assert summarize([4.0, 1.0, 2.0, 9.0]).median == 3.0


def test_no_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one repetition"):
        summarize([])


def test_ratio_is_taken_within_each_round() -> None:
    # The machine was twice as slow in the second round, for both.
    assert speed_ratios([2.0, 4.0], ceiling=[1.0, 2.0]) == [0.5, 0.5]


def test_rounds_must_match() -> None:
    with pytest.raises(ValueError, match="2 rounds, but the ceiling has 1"):
        speed_ratios([1.0, 2.0], ceiling=[1.0])
