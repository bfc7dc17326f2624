from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from psworker.data import Source
from psworker.data.survey import Survey
from psworker.data.tabular import TabularSource
from psworker.errors import DataError, JobError
from tests.psworker.data.reading import by_key, opened, read_all, surveyed


def write(tmp_path: Path, rows: list[str], header: str = "a,b,label") -> str:
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(tmp_path / "a.csv")


def numbers(count: int = 400) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Columns far from 0, of which sums of squares would cancel in single precision, and one of one value."""
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.normal(1e4, 0.5, count), rng.uniform(-3, 9, count), np.full(count, 4.0)])
    return x.astype(np.float32).astype(np.float64)


def source(tmp_path: Path, x: np.ndarray[Any, np.dtype[np.float64]], **data: Any) -> Source:
    rows = [f"{','.join(map(repr, row.tolist()))},0" for row in x]
    return opened(source=write(tmp_path, rows, "a,b,c,label"), chunk_rows=30, **data)


@pytest.mark.parametrize(("scale", "scaler"), [("standard", StandardScaler), ("minmax", MinMaxScaler)])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_scales_are_those_of_scikit_learn_over_the_training_rows(
    tmp_path: Path, scale: str, scaler: Any, holdout: float
) -> None:
    plain = source(tmp_path, numbers(), holdout=holdout)
    scaled = source(tmp_path, numbers(), scale=scale, holdout=holdout)
    assert scaled.wants_survey
    assert scaled.chunks > 10
    scaled = surveyed(scaled)
    fitted = scaler().fit(read_all(plain).x.astype(np.float64))
    for split in ("train", "holdout") if holdout else ("train",):
        expected = fitted.transform(read_all(plain, split).x)
        np.testing.assert_allclose(read_all(scaled, split).x, expected, atol=2e-3)
        assert read_all(scaled, split).x.dtype == np.float32


def test_the_mean_does_not_cancel_far_from_zero(tmp_path: Path) -> None:
    x = np.column_stack([16_777_000 + np.arange(400.0) % 7])  # 7 neighbours, exact in float32
    rows = [f"{int(value)},0" for value in x[:, 0]]
    scaled = surveyed(opened(source=write(tmp_path, rows, "a,label"), chunk_rows=30, scale="standard"))
    got = read_all(scaled).x.astype(np.float64)
    np.testing.assert_allclose(got.std(), 1, atol=1e-3)
    np.testing.assert_allclose(np.ptp(got), 6 / (x % 1000).std(), rtol=1e-3)


def test_all_workers_find_the_same_whatever_the_order(tmp_path: Path) -> None:
    one, other = (source(tmp_path, numbers(), scale="standard") for _ in range(2))
    batches = [surveyed(one).read(3, "train").x]
    totals: dict[str, Any] = {}
    for chunk in range(other.chunks):
        for name, value in other.statistics(chunk).items():
            totals[name] = totals.get(name, 0) + value
    batches.append(other.informed(totals).read(3, "train").x)
    np.testing.assert_allclose(batches[0], batches[1], rtol=1e-6)


@pytest.mark.parametrize(("scale", "missing"), [("standard", "error"), ("minmax", "error"), ("none", "mean")])
def test_the_sums_are_enough_to_know_what_is_done(tmp_path: Path, scale: str, missing: str) -> None:
    """Who has no file has no shift but that of the sums."""
    trained_on = source(tmp_path, numbers(), scale=scale, missing=missing)
    totals: dict[str, Any] = {}
    for chunk in range(trained_on.chunks):
        for name, value in trained_on.statistics(chunk).items():
            totals[name] = totals.get(name, 0) + value
    assert isinstance(trained_on, TabularSource)
    elsewhere = Survey("nowhere", ("a", "b", "c"), 3, missing, scale, "none", ())
    expected = trained_on.informed(totals).adjustment
    assert expected is not None
    found = elsewhere.adjustment(totals)
    for name in ("fill", "offset", "factor"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.width == 3
    del totals["shift"]
    with pytest.raises(JobError, match=r'the servers have no tensor "survey.shift" of it'):
        elsewhere.adjustment(totals)


def test_a_source_is_not_read_before_the_survey(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not informed"):
        source(tmp_path, numbers(), scale="standard").read(0, "train")


def test_without_need_there_is_no_survey(tmp_path: Path) -> None:
    assert not source(tmp_path, numbers()).wants_survey


MISSING = ["1,,0", "2,8,1", "NA,4,0", "6, nan ,1"]


def test_missing_numbers_are_an_error_or_zero_or_skipped_or_the_mean(tmp_path: Path) -> None:
    path = write(tmp_path, MISSING)
    with pytest.raises(DataError, match=r'line 2, column "b": no value; .* set \[data\] missing') as caught:
        read_all(opened(source=path))
    assert (caught.value.line, caught.value.column) == (2, "b")
    zero = opened(source=path, missing="zero")
    assert not zero.wants_survey
    assert read_all(zero).x.tolist() == [[1, 0], [2, 8], [0, 4], [6, 0]]
    skip = opened(source=path, missing="skip")
    assert read_all(skip).x.tolist() == [[2, 8]]
    assert skip.skipped == {"missing": 3}
    mean = surveyed(opened(source=path, missing="mean"))
    assert read_all(mean).x.tolist() == [[1, 6], [2, 8], [3, 4], [6, 6]]


def test_a_missing_number_that_is_scaled_is_the_mean(tmp_path: Path) -> None:
    scaled = read_all(surveyed(opened(source=write(tmp_path, MISSING), missing="mean", scale="standard"))).x
    np.testing.assert_allclose(scaled[[0, 3], 1], 0, atol=1e-7)
    np.testing.assert_allclose(scaled[[1, 2], 1], [1, -1], rtol=1e-6)


def test_what_stands_for_no_number_can_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, ["-,1,0"])
    with pytest.raises(DataError, match='"-" is not a number'):
        read_all(opened(source=path, missing="zero"))
    assert read_all(opened(source=path, missing="zero", missing_values=("-",))).x.tolist() == [[0, 1]]


def test_a_target_is_never_filled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='column "label": no value'):
        read_all(opened(source=write(tmp_path, ["1,2,NA"]), missing="zero"))


def test_a_column_without_values_has_no_mean(tmp_path: Path) -> None:
    path = write(tmp_path, ["1,,0", "2,NA,0"])
    with pytest.raises(DataError, match='column "b": no training row has a value'):
        surveyed(opened(source=path, missing="mean"))


def test_balanced_weights_are_those_of_scikit_learn(tmp_path: Path) -> None:
    labels = ["x"] * 70 + ["y"] * 20 + ["z"] * 10
    path = write(tmp_path, [f"1,2,{label}" for label in labels])
    balanced = surveyed(opened(source=path, classes=("y", "x", "z"), class_weights="balanced", chunk_rows=9))
    batch = read_all(balanced)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=batch.y)
    assert batch.weight is not None
    np.testing.assert_allclose(batch.weight, expected[batch.y], rtol=1e-6)
    np.testing.assert_allclose(batch.total, 100, rtol=1e-5)


def test_weights_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, ["1,2,x", "1,2,y"])
    given = opened(source=path, classes=("x", "y"), class_weights=(("y", 2.5),))
    assert not given.wants_survey
    batch = given.read(0, "train")
    assert batch.weight is not None
    assert batch.weight.tolist() == [1, 2.5]


@pytest.mark.parametrize("data", [{"class_weights": "balanced"}, {"scale": "standard"}])
def test_a_survey_finds_data_of_one_class(tmp_path: Path, data: dict[str, Any]) -> None:
    path = write(tmp_path, ["1,2,x", "3,4,x"])
    with pytest.raises(
        DataError, match='all 2 training rows are of class "x"; there is nothing to tell apart'
    ):
        surveyed(opened(source=path, classes=("x", "y"), **data))


def test_a_class_without_rows_cannot_be_balanced(tmp_path: Path) -> None:
    path = write(tmp_path, ["1,2,x", "3,4,y"])
    with pytest.raises(DataError, match='no training row is of class "z"'):
        surveyed(opened(source=path, classes=("x", "y", "z"), class_weights="balanced"))


def test_a_survey_of_rows_none_of_which_can_be_used(tmp_path: Path) -> None:
    path = write(tmp_path, ["1,x,0", "y,2,0"])
    with pytest.raises(DataError, match="no training row can be used"):
        surveyed(opened(source=path, scale="standard", on_error="skip"))


def test_extremes_of_too_many_chunks_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    header = ",".join(f"a{column}" for column in range(200))
    path = write(tmp_path, [",".join(["1"] * 201)] * 1500, f"{header},label")
    with pytest.raises(JobError, match=r"chunk-rows higher, or take scale = \"standard\""):
        opened(source=path, chunk_rows=1, scale="minmax")


def test_hashed_numbers_are_scaled_like_dense_ones(tmp_path: Path) -> None:
    dense = surveyed(source(tmp_path, numbers(), scale="standard")).read(2, "train")
    hashed = surveyed(source(tmp_path, numbers(), scale="standard", hashed=True)).read(2, "train")
    for row, expected in zip(by_key(hashed), dense.x, strict=True):
        assert sorted(row.values()) == sorted(expected.tolist())


def test_libsvm_columns_can_be_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_text("1 1:2\n0 2:3\n0 1:4\n")
    batch = surveyed(opened(source=str(tmp_path / "a.svm"), scale="minmax")).read(0, "train")
    np.testing.assert_allclose(batch.x, [[0.5, 0.0], [0.0, 1.0], [1.0, 0.0]])
