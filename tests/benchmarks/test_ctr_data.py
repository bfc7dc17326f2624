from pathlib import Path

import numpy as np
import pytest

from benchmarks.ctr_data import (
    CARDINALITIES,
    CHUNK_EXAMPLES,
    NUMERIC,
    Chunk,
    Clicks,
    concatenate,
    read_chunk,
    write_chunks,
)
from benchmarks.ctr_scores import area_under_curve, log_loss


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    return Clicks.of_seed(7)


@pytest.fixture(scope="module")
def examples(clicks: Clicks) -> Chunk:
    return concatenate([clicks.train(number) for number in range(6)])


def test_a_chunk_is_the_same_whoever_makes_it_and_when(clicks: Clicks) -> None:
    clicks.train(3)
    again = Clicks.of_seed(7).train(5)
    for mine, other in zip(clicks.train(5), again, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_chunks_parts_and_seeds_differ(clicks: Clicks) -> None:
    others = (clicks.train(1), clicks.held_out(0), Clicks(8, clicks.intercept).train(0))
    for other in others:
        assert not np.array_equal(clicks.train(0).categories, other.categories)


def test_shapes_and_types(clicks: Clicks) -> None:
    chunk = clicks.train(0)
    assert [(array.shape, array.dtype.str) for array in chunk] == [
        ((CHUNK_EXAMPLES, NUMERIC), "<f4"),
        ((CHUNK_EXAMPLES, len(CARDINALITIES)), "<i4"),
        ((CHUNK_EXAMPLES,), "|u1"),
        ((CHUNK_EXAMPLES,), "<f4"),
    ]


def test_a_quarter_are_clicks_as_the_probabilities_say(examples: Chunk) -> None:
    assert examples.clicks.mean() == pytest.approx(0.25, abs=0.02)
    assert examples.probability.mean() == pytest.approx(examples.clicks.mean(), abs=0.01)


def test_clicks_follow_their_probability(examples: Chunk) -> None:
    likely = examples.probability > 0.5
    assert examples.clicks[likely].mean() == pytest.approx(examples.probability[likely].mean(), abs=0.02)


def test_the_true_probabilities_score_better_than_the_rate(examples: Chunk) -> None:
    rate = np.full_like(examples.probability, examples.clicks.mean())
    assert log_loss(examples.probability, examples.clicks) < log_loss(rate, examples.clicks) - 0.1
    assert area_under_curve(examples.probability, examples.clicks) > 0.8


def test_numbers_are_counts_with_a_long_tail_and_some_are_missing(examples: Chunk) -> None:
    numbers = examples.numbers.astype(np.float64)
    missing = np.isnan(numbers).mean(axis=0)
    assert missing[0] == 0
    assert missing[-1] == pytest.approx(0.45, abs=0.02)
    assert np.nanmin(numbers) >= 0
    np.testing.assert_array_equal(np.floor(numbers), numbers)
    assert np.all(np.nanmean(numbers, axis=0)[3:] > 1.2 * np.nanmedian(numbers, axis=0)[3:])


def test_categories_follow_zipf_within_their_cardinality(examples: Chunk) -> None:
    for column, cardinality in enumerate(CARDINALITIES):
        categories = examples.categories[:, column]
        counts = np.bincount(categories[categories < 1000])
        assert categories.min() == 0
        assert categories.max() < cardinality
        assert np.argmax(counts) == 0
        if cardinality > 1000:  # as many between 10 and 100 as between 100 and 1000, but for the exponent
            assert 1 < counts[10:100].sum() / counts[100:1000].sum() < 2


def test_files_hold_what_was_written(clicks: Clicks, tmp_path: Path) -> None:
    chunk = clicks.train(0)
    (path,) = write_chunks([chunk], tmp_path, "train")
    for mine, other in zip(read_chunk(path), chunk, strict=True):
        np.testing.assert_array_equal(mine, other)
