"""Handwritten digits as CSV, in the order that an experiment wants."""

from pathlib import Path
from typing import Literal

import numpy as np

Order = Literal["shuffled", "sorted"]

CLASSES = tuple("0123456789")


def write_digits(path: Path, order: Order) -> None:
    """Write scikit-learn's 1,797 digits, pixels scaled to 0..1, shuffled or sorted by their label.

    The column `hand`, 0 to 19, stands for who wrote a digit: scikit-learn does not say, so it is the place in
    the original file, which was collected writer by writer.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    hands = np.arange(len(labels)) * 20 // len(labels)
    places = np.random.default_rng(0).permutation(len(labels))
    if order == "sorted":
        places = places[np.argsort(labels[places], kind="stable")]
    header = ",".join([*(f"p{number}" for number in range(pixels.shape[1])), "hand", "label"])
    formats = ["%.4f"] * pixels.shape[1] + ["%d", "%d"]
    rows = np.c_[pixels / 16, hands, labels][places]
    np.savetxt(path, rows, formats, delimiter=",", header=header, comments="")
