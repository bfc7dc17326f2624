from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.ctr_data import NUMERIC, Chunk, Clicks
from benchmarks.ctr_features import (
    COLUMNS,
    SIZES,
    Examples,
    examples_of,
    key_of,
    lines_of,
    place_of,
    tokens_of,
)
from benchmarks.ctr_models import FactorizationMachine, LogisticRegression, Model


@pytest.fixture(scope="module")
def chunk() -> Chunk:
    return Clicks(7, -2.0).train(0)


@pytest.fixture(scope="module")
def examples(chunk: Chunk) -> Examples:
    return examples_of(tokens_of(chunk)[:200], chunk.clicks[:200])


def loss(
    model: Model, examples: Examples, rows: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
) -> float:
    logits = model.logits(examples.design.astype(np.float64), rows)  # type: ignore[arg-type]
    return float((np.logaddexp(0, logits) - examples.clicks * logits).sum())


@pytest.mark.parametrize(
    "model", [LogisticRegression(), FactorizationMachine(3)], ids=lambda model: model.dim
)
def test_gradient_is_that_of_finite_differences(model: Model, examples: Examples) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.2, (len(examples.keys), model.dim))
    gradient = model.gradient(examples, rows.astype(np.float32))
    assert gradient.shape == rows.shape
    for _ in range(5):
        direction = rng.normal(0, 1, rows.shape)
        ahead, behind = (loss(model, examples, rows + step * direction) for step in (1e-5, -1e-5))
        assert (ahead - behind) / 2e-5 == pytest.approx((gradient * direction).sum(), rel=1e-3, abs=0.05)


def test_factorization_machine_adds_the_product_of_each_pair(examples: Examples) -> None:
    model = FactorizationMachine(3)
    rows = np.random.default_rng(1).normal(0, 0.3, (len(examples.keys), model.dim)).astype(np.float32)
    first = rows[examples.design[[0]].indices]
    vectors = first[:, 1:]
    pairs = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    assert model.logits(examples.design, rows)[0] == pytest.approx(first[:, 0].sum() + sum(pairs), rel=1e-4)


def test_missing_numbers_have_a_token_of_their_own(chunk: Chunk) -> None:
    tokens = tokens_of(chunk)
    missing = np.isnan(chunk.numbers)
    assert tokens.shape == (len(chunk.clicks), COLUMNS)
    assert not np.intersect1d(tokens[:, :NUMERIC][missing], tokens[:, :NUMERIC][~missing]).size


def test_keys_and_places_tell_the_same_features_apart(chunk: Chunk) -> None:
    columns, tokens = np.arange(COLUMNS), tokens_of(chunk)
    keys, places = key_of(columns, tokens).reshape(-1), place_of(columns, tokens).reshape(-1)
    pairs = np.unique(np.stack([keys, places]), axis=1)
    assert len(np.unique(keys)) == len(np.unique(places)) == pairs.shape[1]
    assert places.max() == SIZES.sum() - 1  # the intercept
    assert np.all(tokens.max(axis=0) < SIZES)


@pytest.mark.parametrize("named", [key_of, place_of])
def test_examples_have_each_of_their_features_once(chunk: Chunk, named: Any) -> None:
    tokens = tokens_of(chunk)[:50]
    found = examples_of(tokens, chunk.clicks[:50], named)
    expected = named(np.arange(COLUMNS), tokens)
    assert len(np.unique(found.keys)) == len(found.keys) == len(np.unique(expected))
    assert found.design.shape == (50, len(found.keys))
    np.testing.assert_array_equal(found.keys[found.design.indices].reshape(50, COLUMNS), expected)
    assert found.design.data.min() == found.design.data.max() == 1
    assert found.clicks.tolist() == chunk.clicks[:50].tolist()


def test_a_line_is_a_label_and_a_word_for_each_column(chunk: Chunk) -> None:
    tokens = np.arange(2 * COLUMNS, dtype=np.int32).reshape(2, COLUMNS)
    one, other = lines_of(tokens, np.array([1, 0], np.uint8)).splitlines()
    assert one.startswith("1 | A0 B1 ")
    assert other.startswith("-1 | A40 B41 ")
    assert len(one.split()) == COLUMNS + 1  # the label and the bar, without the intercept
    assert lines_of(tokens, None).startswith("| A0 B1 ")
