"""Losses: what a score costs, and how fast that changes with the score. Pure, one function a loss.

Each takes scores z and labels y, float arrays of one shape unless it says otherwise, and returns the loss
of each example and its slope d loss / d z, of the shape of z. Labels of two classes are 0 and 1. Where a
loss has a corner the slope is one of its subgradients. None overflows where z does not.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Losses: TypeAlias = tuple[Array, Array]


def squared(z: Array, y: Array) -> Losses:
    """1/2 (z - y)^2 (Gauss 1809). In float64: squares overflow float32 long before."""
    residual = z - y
    return 0.5 * np.square(residual, dtype=np.float64), residual


def huber(z: Array, y: Array, delta: float) -> Losses:
    """r^2/2 where |r| <= delta, delta (|r| - delta/2) beyond it, r = z - y (Huber 1964)."""
    residual = z - y
    size = np.abs(residual)
    within = np.minimum(size, delta)
    return within * (size - within / 2), np.clip(residual, -delta, delta)


def quantile(z: Array, y: Array, level: float) -> Losses:
    """level (y - z) where y > z, (1 - level) (z - y) elsewhere (Koenker and Bassett 1978)."""
    residual = z - y
    slope = np.where(residual < 0, -level, 1 - level).astype(z.dtype) * (residual != 0)
    return slope * residual, slope


def logistic(z: Array, y: Array) -> Losses:
    """log(1 + e^z) - y z, as max(z, 0) - y z + log1p(e^-|z|) (Cox 1958)."""
    loss = np.maximum(z, 0) - y * z + np.log1p(np.exp(-np.abs(z)))
    return loss, sigmoid(z) - y


def softmax(z: Array, y: Array) -> Losses:
    """log sum_k e^z_k - z_y for scores (n, k) and class indices (n,); the slope is softmax(z) - e_y."""
    rows = np.arange(len(y))
    shifted = z - z.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1)
    slope = exp / total[:, np.newaxis]
    slope[rows, y] -= 1
    return np.log(total) - shifted[rows, y], slope


def perceptron(z: Array, y: Array) -> Losses:
    """max_k z_k - z_y for scores (n, k) and class indices (n,): e_q - e_y, q the first of the largest.

    Rosenblatt 1958; for more than two classes Collins, "Discriminative training methods for hidden Markov
    models", EMNLP 2002.
    """
    rows = np.arange(len(y))
    predicted = z.argmax(axis=1)
    slope = np.zeros_like(z)
    slope[rows, predicted] += 1
    slope[rows, y] -= 1
    return z[rows, predicted] - z[rows, y], slope


def margin(z: Array, y: Array) -> Losses:
    """max(0, 1 - (z_y - z_r)), r the best of the other classes, for scores (n, k) and class indices (n,).

    Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector machines", 2001.
    """
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    rival = others.argmax(axis=1)
    loss = np.maximum(1 - (z[rows, y] - z[rows, rival]), 0)
    slope = np.zeros_like(z)
    slope[rows, rival] += loss > 0
    slope[rows, y] -= loss > 0
    return loss, slope


def hinge(z: Array, y: Array) -> Losses:
    """max(0, 1 - s z), s = 2 y - 1 (Cortes and Vapnik 1995)."""
    sign = 2 * y - 1
    short = 1 - sign * z
    return np.maximum(short, 0), np.where(short > 0, -sign, 0).astype(z.dtype)


def squared_hinge(z: Array, y: Array) -> Losses:
    """max(0, 1 - s z)^2, s = 2 y - 1: smooth where `hinge` has its corner. In float64, as `squared`."""
    sign = 2 * y - 1
    short = np.maximum(1 - sign * z, 0)
    return np.square(short, dtype=np.float64), -2 * sign * short


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), as (1 + tanh(z/2)) / 2: tanh saturates where e^-z would overflow."""
    result: Array = 0.5 * (1 + np.tanh(0.5 * z))
    return result
