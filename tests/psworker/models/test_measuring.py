"""What is measured of rows, merged and derived, against scikit-learn on the rows themselves."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score, r2_score, roc_auc_score, root_mean_squared_error

from protocol.measures import F1_CLASSES, MAX_MEASURES, SCORE_BINS, derived
from psworker.models.measuring import (
    classification_measures,
    ranking_measures,
    regression_measures,
    score_bins,
)

Floats = npt.NDArray[np.float64]


def even(rows: int) -> Floats:
    return np.full(rows, 1 / rows)


def merged(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """What the coordinator makes of chunks: the mean of each measure, weighted by the rows."""
    total = sum(rows for rows, _ in parts)
    return {name: sum(rows * measures[name] for rows, measures in parts) / total for name in parts[0][1]}


def scores(scale: float, apart: float, shift: float) -> tuple[Floats, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(7)
    y = (rng.random(5000) < 0.3).astype(np.int64)
    return scale * (rng.standard_normal(5000) + apart * y + shift), y


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_rmse_and_r2(offset: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal(300) + offset
    z = y + rng.normal(0, 0.5, 300)
    parts = [
        (len(rows), regression_measures(z[rows], y[rows], even(len(rows))))
        for rows in (np.arange(17), np.arange(17, 300))
    ]
    shown = derived(merged(parts))
    assert shown.keys() == {"mse", "mae", "rmse", "r2"}
    assert shown["r2"] == pytest.approx(r2_score(y, z), abs=1e-6)
    assert shown["rmse"] == pytest.approx(root_mean_squared_error(y, z))
    assert shown["mae"] == pytest.approx(np.abs(y - z).mean())


@pytest.mark.parametrize("value", [0.0, 0.1, 3e7])
def test_there_is_no_r2_of_what_does_not_vary(value: float) -> None:
    y = np.full(30, value)
    shown = derived(regression_measures(y + 1, y, even(30)))
    assert shown["rmse"] == pytest.approx(1.0)
    assert "r2" not in shown


def test_f1_is_the_macro_mean_over_classes_that_occur_or_are_predicted() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 5, 400)
    predicted = np.where(
        rng.random(400) < 0.7, y, rng.integers(0, 6, 400)
    )  # 5 is predicted only, 6 is neither
    parts = [
        (len(rows), classification_measures(predicted[rows], y[rows], even(len(rows)), 7))
        for rows in (np.arange(3), np.arange(3, 400))
    ]
    shown = derived(merged(parts))
    assert shown.keys() == {"accuracy", "f1"}
    assert shown["f1"] == pytest.approx(f1_score(y, predicted, average="macro", zero_division=0.0))
    assert shown["accuracy"] == pytest.approx((y == predicted).mean())


def test_f1_of_many_classes_is_not_measured() -> None:
    y = np.zeros(4, np.int64)
    assert len(classification_measures(y, y, even(4), F1_CLASSES)) == 3 * F1_CLASSES + 1
    assert classification_measures(y, y, even(4), F1_CLASSES + 1) == {"accuracy": 1.0}


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("apart", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 1.0])
def test_auc_is_that_of_the_scores_to_a_thousandth(scale: float, apart: float, shift: float) -> None:
    z, y = scores(scale, apart, shift)
    parts = [
        (len(rows), ranking_measures(z[rows], y[rows], even(len(rows))))
        for rows in (np.arange(100), np.arange(100, 5000))
    ]
    shown = derived(merged(parts))
    assert shown.keys() == {"auc"}
    assert shown["auc"] == pytest.approx(roc_auc_score(y, z), abs=1e-3)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4, 1e12])
def test_auc_is_off_by_at_most_half_the_pairs_that_share_a_bin(scale: float) -> None:
    z, y = scores(scale, 1.0, 0.5)
    means = ranking_measures(z, y, even(len(y)))
    pairs = sum(means[f"~pos.{number}"] * means[f"~neg.{number}"] for number in range(SCORE_BINS))
    bound = pairs / (2 * y.mean() * (1 - y.mean()))
    assert abs(derived(means)["auc"] - roc_auc_score(y, z)) <= bound + 1e-12


def test_scores_that_are_equal_are_ties() -> None:
    y = np.array([0, 1, 0, 1, 1])
    z = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert derived(ranking_measures(z, y, even(5)))["auc"] == pytest.approx(roc_auc_score(y, z))


def test_there_is_no_auc_of_one_class() -> None:
    z = np.array([1.0, 2.0])
    for y in (np.zeros(2, np.int64), np.ones(2, np.int64)):
        assert "auc" not in derived(ranking_measures(z, y, even(2)))


def test_bins_ascend_with_the_score_whatever_it_is() -> None:
    sizes = np.logspace(-30, 30, 20000)
    z = np.concatenate([-sizes[::-1], [0.0], sizes])
    bins = score_bins(z)
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, SCORE_BINS - 1)
    assert len(np.unique(bins)) == SCORE_BINS
    assert score_bins(np.array([-np.inf, np.inf])).tolist() == [0, SCORE_BINS - 1]
    assert 0 <= score_bins(np.array([np.nan]))[0] < SCORE_BINS


def test_all_that_a_classifier_measures_can_be_sent() -> None:
    assert MAX_MEASURES >= 2 * SCORE_BINS + 3 * F1_CLASSES + 3
