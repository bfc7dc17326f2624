import numpy as np
import pytest

from benchmarks.systems.verification import Array, WrongResult, check_descent, check_sums


class Tensor:
    def __init__(self, nbytes: int, scale: float) -> None:
        self._value = np.zeros(nbytes // 4, np.float32)
        self._scale = np.float32(scale)

    def push(self, gradient: Array) -> None:
        self._value += self._scale * gradient

    def pull(self) -> Array:
        return self._value.copy()

    def push_pull(self, gradient: Array) -> Array:
        self.push(gradient)
        return self.pull()


def test_server_that_adds_passes() -> None:
    check_sums(Tensor(1000, scale=1.0), 1000)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_server_that_does_not_add_is_found_out(scale: float) -> None:
    with pytest.raises(WrongResult, match="not the sum"):
        check_sums(Tensor(1000, scale), 1000)


def test_a_server_that_descends_passes_and_one_that_does_not_is_found_out() -> None:
    check_descent(Tensor(1000, scale=-0.5), 1000)
    for scale in (0.0, 1.0):
        with pytest.raises(WrongResult, match="did not move against the gradient"):
            check_descent(Tensor(1000, scale), 1000)
