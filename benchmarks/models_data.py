"""Data to compare models on: what comes with scikit-learn and river, split, scaled, and written as CSV."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_TEST_SHARE = 0.3
_VALIDATION_SHARE = 0.25  # of the training rows
_SEED = 0

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Data:
    """Rows to train and to test on. `classes`: None where `y` are numbers.

    `x` (n, features) and `y` (n,) are what scikit-learn is given. They are the columns of `header` in the
    files, the label last; in those that are `categorical` the numbers are names of values.
    """

    name: str
    x: Numbers
    y: Numbers
    x_test: Numbers
    y_test: Numbers
    classes: int | None
    categorical: bool = False

    @property
    def columns(self) -> list[str]:
        """The names of the features."""
        return [f"f{number}" for number in range(self.x.shape[1])]

    def validation(self) -> "Data":
        """Return the training rows alone, split again: what to choose settings on."""
        return _split(
            f"{self.name}-validation", self.x, self.y, self.classes,
            share=_VALIDATION_SHARE, scaled=False, categorical=self.categorical,
        )  # fmt: skip

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write `NAME-train.csv` and `NAME-test.csv` and return their paths."""
        paths = directory / f"{self.name}-train.csv", directory / f"{self.name}-test.csv"
        header = ",".join([*self.columns, "label"])
        feature = "v%d" if self.categorical else "%.9g"
        formats = [feature] * self.x.shape[1] + ["%.9g" if self.classes is None else "%d"]
        for path, x, y in zip(paths, (self.x, self.x_test), (self.y, self.y_test), strict=True):
            np.savetxt(path, np.c_[x, y], formats, delimiter=",", header=header, comments="")
        return paths


def load(name: str) -> Data:
    """Load one of digits, breast-cancer, wine, diabetes, phishing, values, pixels and ratings.

    Of scikit-learn's data each column is scaled by mean and deviation of the training rows, and so is the
    number to predict. Phishing is river's, `values` the same with each column's few values as categories.
    `pixels` are the digits as ratings are: what an image says of a place. `ratings` are made here: none come
    with either package.
    """
    if name == "ratings":
        return _split(name, *_ratings(), None, scaled=False, categorical=True)
    if name == "pixels":
        return _split(name, *_pixels(), None, scaled=False, categorical=True)
    if name in ("phishing", "values"):
        x, y = _phishing()
        if name == "values":  # each column's values as whole numbers from 0
            x = np.column_stack([np.unique(column, return_inverse=True)[1] for column in x.T])
        return _split(name, x, y, 2, scaled=name == "phishing", categorical=name == "values")
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name.replace('-', '_')}")(return_X_y=True)
    return _split(name, x, y, None if name == "diabetes" else int(y.max()) + 1)


def _split(
    name: str,
    x: Numbers,
    y: Numbers,
    classes: int | None,
    *,
    share: float = _TEST_SHARE,
    scaled: bool = True,
    categorical: bool = False,
) -> Data:
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=share, random_state=_SEED, stratify=None if classes is None else y
    )
    if scaled:
        mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
        deviation[deviation == 0] = 1
        x_train, x_test = (x_train - mean) / deviation, (x_test - mean) / deviation
    if classes is None:
        mean, deviation = y_train.mean(), y_train.std()
        y_train, y_test = (y_train - mean) / deviation, (y_test - mean) / deviation
    return Data(name, x_train, y_train, x_test, y_test, classes, categorical)


def _phishing() -> tuple[Numbers, Numbers]:
    from river.datasets import Phishing

    rows = list(Phishing())
    x = np.array([list(features.values()) for features, _ in rows], np.float64)
    return x, np.array([label for _, label in rows], np.float64)


def _pixels(images: int = 400) -> tuple[Numbers, Numbers]:
    """The first so many digits, one row for each of the 64 places: (image, place) and how dark it is."""
    from sklearn.datasets import load_digits

    darkness = load_digits().data[:images]
    image, place = np.indices(darkness.shape)
    return np.column_stack([image.ravel(), place.ravel()]).astype(np.float64), darkness.ravel()


def _ratings(
    users: int = 200, items: int = 100, rank: int = 3, count: int = 12_000
) -> tuple[Numbers, Numbers]:
    """Ratings 3 + b_u + b_i + v_u . v_i + noise of deviation 0.5, with b of deviation 0.4 and v of 0.7.

    Each user has rated some 60 of 100 items, as the densest tenth of MovieLens' users have.
    """
    rng = np.random.default_rng(_SEED)
    pairs = rng.choice(users * items, count, replace=False)
    user, item = pairs // items, pairs % items
    biases = rng.normal(0, 0.4, users)[user] + rng.normal(0, 0.4, items)[item]
    factors = rng.normal(0, 0.7, (users, rank))[user] * rng.normal(0, 0.7, (items, rank))[item]
    y = 3 + biases + factors.sum(axis=1) + rng.normal(0, 0.5, count)
    return np.column_stack([user, item]).astype(np.float64), y
