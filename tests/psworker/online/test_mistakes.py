import numpy as np
import pytest

from psworker.online.mistakes import Mistakes


def test_a_wrong_class_is_1() -> None:
    found = Mistakes().of_classes(np.array([0, 1, 2]), np.array([0, 2, 2], np.float32))
    assert found.tolist() == [0.0, 1.0, 0.0]


def test_distances_are_beside_what_was_usual_at_first() -> None:
    mistakes = Mistakes()
    for _ in range(5):
        assert not len(mistakes.of_distances(np.full(100, 2.0, np.float32)))
    assert mistakes.of_distances(np.array([2.0, 0.0, 6.0])) == pytest.approx([0.5, 0.0, 0.75])
    for _ in range(100):  # what is usual stays what it was
        mistakes.of_distances(np.full(100, 6.0))
    assert mistakes.of_distances(np.array([2.0])) == pytest.approx([0.5])


def test_what_is_not_finite_is_as_wrong_as_can_be() -> None:
    mistakes = Mistakes()
    mistakes.of_distances(np.array([*[1.0] * 500, np.nan]))
    assert mistakes.of_distances(np.array([np.nan, np.inf, 1.0])).tolist() == [1.0, 1.0, 0.5]


def test_a_perfect_model_makes_no_mistakes() -> None:
    mistakes = Mistakes()
    mistakes.of_distances(np.zeros(500))
    assert mistakes.of_distances(np.zeros(3)).tolist() == [0.0] * 3
    assert mistakes.of_distances(np.array([1e-3])).tolist() == [1.0]
