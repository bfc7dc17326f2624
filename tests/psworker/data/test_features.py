from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psworker.data import minibatches
from psworker.data.features import Design
from psworker.data.rows import Entries, Rows, coded
from psworker.errors import JobError
from psworker.keys import hash_features
from tests.psworker.data.reading import by_key, opened, read_all

TEXT = """age,city,review,label
20,Rome,"Good, very GOOD.",1
31.5,"Paris, TX",,0
40,Rome,bad_one été,0
50,,Good,1
"""


def key(feature: str) -> int:
    return int(hash_features([feature])[0])


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.csv").write_text(TEXT)
    return str(tmp_path / "a.csv")


EXPECTED: list[dict[str, float]] = [
    {"age": 20, "city=Rome": 1, "review=good": 2, "review=very": 1},
    {"age": 31.5, "city=Paris, TX": 1},
    {"age": 40, "city=Rome": 1, "review=bad_one": 1, "review=été": 1},
    {"age": 50, "city=": 1, "review=good": 1},
]


def test_hashed_features_are_named_by_column_and_value(path: str) -> None:
    source = opened(source=path, categorical=("city",), text=("review",), hashed=True)
    assert (source.features, source.hashed) == (0, True)
    batch = source.read(0, "train")
    assert by_key(batch) == [{key(name): value for name, value in row.items()} for row in EXPECTED]
    assert batch.x.dtype == np.float32
    assert batch.y.tolist() == [1, 0, 0, 1]


def test_rows_without_texts_are_hashed_alike(path: str) -> None:
    source = opened(source=path, columns=("age",), categorical=("city",), hashed=True)
    batch = source.read(0, "train")
    expected = [{name: row[name] for name in row if not name.startswith("review")} for row in EXPECTED]
    assert by_key(batch) == [{key(name): value for name, value in row.items()} for row in expected]


def test_numbers_alone_can_be_hashed(path: str) -> None:
    batch = opened(source=path, columns=("age",), hashed=True).read(0, "train")
    assert by_key(batch) == [{key("age"): row["age"]} for row in EXPECTED]


def test_mini_batches_have_the_features_of_their_rows(path: str) -> None:
    batch = opened(source=path, categorical=("city",), text=("review",), hashed=True).read(0, "train")
    rows = [row for piece in minibatches(batch, 1, np.random.default_rng(0)) for row in by_key(piece)]
    assert sorted(map(len, rows)) == sorted(map(len, EXPECTED))


def test_dense_features_are_signed_sums_in_buckets(path: str) -> None:
    buckets = 5
    source = opened(source=path, categorical=("city",), text=("review",), hash_buckets=buckets)
    assert (source.features, source.hashed) == (1 + buckets, False)
    batch = source.read(0, "train")
    expected = np.zeros((4, 1 + buckets))
    for row, features in enumerate(EXPECTED):
        for name, value in features.items():
            if name == "age":
                expected[row, 0] = value
            else:
                hashed = key(name)
                sign = -1 if hashed >= 1 << 63 else 1
                expected[row, 1 + hashed % (1 << 63) % buckets] += sign * value
    np.testing.assert_array_equal(batch.x, expected)
    assert batch.x.dtype == np.float32
    assert batch.x.flags.c_contiguous


def test_the_signed_sums_keep_dot_products_in_the_mean() -> None:
    # Weinberger et al. 2009, Lemma 2: unbiased, with a variance of the order 1/buckets. Over 400 hash
    # functions (column names), the mean product of two rows with 12 common words of 20 is near 12.
    one, other = ([f"w{word}" for word in range(start, start + 20)] for start in (0, 8))
    texts = coded([" ".join(one), " ".join(other)])
    rows = Rows(np.arange(2), np.empty((2, 0), np.float32), np.zeros(2, np.float32), texts=(texts,))
    products = []
    for column in range(400):
        x, _ = Design(0, text=(f"c{column}",), buckets=64).of(rows, rows.numbers)
        products.append(float(x[0] @ x[1]))
    assert abs(np.mean(products) - 12) < 4 * np.std(products) / 20
    assert np.std(products) < 5


def test_a_chunk_is_no_larger_for_its_buckets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("c,label\n" + "x,1\n" * 5000)
    data: dict[str, Any] = {"source": str(tmp_path / "a.csv"), "categorical": ("c",), "chunk_rows": 10**6}
    assert opened(**data, hash_buckets=1024).chunks == 1
    assert opened(**data, hash_buckets=1 << 13).chunks == 5  # of 32 MiB
    assert opened(**data, hashed=True).chunks == 1


def test_values_that_no_row_has_have_no_key() -> None:
    city = coded(["a", "b", "c"])
    rows = Rows(np.arange(3), np.empty((3, 0), np.float32), np.zeros(3, np.float32), (city,))
    some = rows.where(np.array([True, False, True]))
    x, keys = Design(0, categorical=("c",), hashed=True).of(some, some.numbers)
    assert keys is not None
    assert keys.tolist() == sorted([key("c=a"), key("c=c")])
    assert x.shape == (2, 2)


def test_entries_keep_their_keys() -> None:
    entries = Entries(np.array([0, 2, 2, 3]), np.array([7, 9, 7], np.uint64), np.array([1, 2, 3], np.float32))
    rows = Rows(np.arange(3), np.empty((3, 0), np.float32), np.zeros(3, np.float32), entries=entries)
    x, keys = Design(0, hashed=True).of(rows, rows.numbers)
    assert keys is not None
    assert keys.tolist() == [7, 9]
    assert x.toarray().tolist() == [[1, 2], [0, 0], [3, 0]]


def test_no_rows_have_no_features() -> None:
    rows = Rows(
        np.arange(0), np.empty((0, 1), np.float32), np.zeros(0, np.float32), (coded([]),), (coded([]),)
    )
    x, keys = Design(1, ("a",), ("b",), ("c",), hashed=True).of(rows, rows.numbers)
    assert x.shape[0] == 0
    assert keys is not None
    x, _ = Design(1, ("a",), ("b",), ("c",), buckets=3).of(rows, rows.numbers)
    assert x.shape == (0, 4)


def test_libsvm_indices_are_keys_as_they_are(tmp_path: Path) -> None:
    large = 10**18 - 1
    (tmp_path / "a.svm").write_text(f"1 3:0.5 {large - 1}:1 {large}:2\n0\n0 3:1\n")
    source = opened(source=str(tmp_path / "a.svm"), hashed=True)
    assert (source.features, source.hashed) == (0, True)
    assert by_key(source.read(0, "train")) == [{3: 0.5, large - 1: 1, large: 2}, {}, {3: 1}]


def test_a_model_learns_from_buckets_what_it_would_from_one_column_a_category(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    city = rng.integers(0, 20, 300)
    effect = rng.normal(size=20)
    text = "".join(f"c{one},{effect[one]}\n" for one in city)
    (tmp_path / "a.csv").write_text(f"city,label\n{text}")
    batch = read_all(opened(source=str(tmp_path / "a.csv"), categorical=("city",), hash_buckets=4096))
    assert len(Counter(map(bytes, batch.x))) == 20
    w = np.linalg.lstsq(batch.x.astype(float), batch.y.astype(float), rcond=None)[0]
    np.testing.assert_allclose(batch.x @ w, batch.y, atol=1e-4)


def test_without_scipy_the_remedy_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(source=path, columns=("age",), hashed=True)
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(JobError, match=r"pip install 'asyncps\[sparse\]'"):
        source.read(0, "train")
