from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.parquet import render_text
from benchmarks.parquet_data import CATEGORIES, LOGIT, NUMBERS, write_parquet
from psworker.data import open_source
from psworker.job import DataSettings
from tests.benchmarks.test_table import cells


def test_the_labels_are_of_the_model_that_is_written_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    written = write_parquet(tmp_path, 5000)
    data = DataSettings(
        written.paths,
        columns=(LOGIT, *NUMBERS),
        categorical=tuple(CATEGORIES),
        hash_buckets=8,
        chunk_rows=10**6,
    )
    source = open_source(data, seed=0, holdout=0.0)
    assert source.chunks == len(written.paths)
    batches = [source.read(chunk, "train") for chunk in range(source.chunks)]
    z, y = (
        np.concatenate([batch.x[:, 0] for batch in batches]),
        np.concatenate([batch.y for batch in batches]),
    )
    assert len(y) == 5000
    for low, high in ((-9, -1), (-1, 0), (0, 1), (1, 9)):
        among = (z > low) & (z <= high)
        expected = (1 / (1 + np.exp(-z[among]))).mean()
        assert abs(y[among].mean() - expected) < 4 / np.sqrt(among.sum()) * 0.5
    before = [Path(path).stat().st_mtime_ns for path in written.paths]
    assert write_parquet(tmp_path, 5000) == written
    assert [Path(path).stat().st_mtime_ns for path in written.paths] == before


def test_both_are_beside_the_truth_with_their_largest_process() -> None:
    cluster = {
        "examples": 1000,
        "seconds": 0.5,
        "loss": 0.51,
        "peaks": {"psworker 7": 2e8, "psworker 8": 1e8},
    }
    peer: dict[str, Any] = {
        "examples": 1000,
        "seconds": 1.0,
        "loss": 0.52,
        "true_loss": 0.5,
        "peaks": {"x 9": 3e8},
    }
    both = {"cluster": cluster, "scikit-learn": peer}
    lines = render_text({"rows": 1000, "bytes": 4e6, "features": {"dense": both}}).splitlines()
    assert cells(lines[1]) == ["dense: psctl train", "2,000", "0.5100", "0.5000", "200"]
    assert cells(lines[2]) == ["dense: SGDClassifier", "1,000", "0.5200", "0.5000", "300"]
    assert [cells(line) for line in lines[4:7]] == [
        ["process", "peak MB"],
        ["dense: psworker", "200"],
        ["dense: x", "300"],
    ]
