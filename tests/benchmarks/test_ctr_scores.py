import math

import numpy as np
import pytest

from benchmarks.ctr_scores import area_under_curve, log_loss


def test_log_loss_is_the_mean_of_what_was_given_to_what_came() -> None:
    loss = log_loss(np.array([0.5, 0.25]), np.array([1, 0]))
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)


def test_certainty_that_is_wrong_costs_much_but_not_everything() -> None:
    assert 10 < log_loss(np.array([0.0], np.float32), np.array([1])) < math.inf


def test_area_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    clicks = rng.integers(0, 2, 200)
    score = rng.integers(0, 20, 200) / 20  # many are equal
    clicked, other = score[clicks == 1], score[clicks == 0]
    pairs = np.sign(clicked[:, None] - other[None, :])
    assert area_under_curve(score, clicks) == pytest.approx((pairs.mean() + 1) / 2)


def test_area_of_one_kind_only_is_refused() -> None:
    with pytest.raises(ValueError, match="clicks"):
        area_under_curve(np.array([0.1, 0.2]), np.array([1, 1]))
