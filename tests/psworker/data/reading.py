"""What tests of sources share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from psworker.data import Batch, Source, open_source
from psworker.data.split import Split
from psworker.job import DataSettings


def opened(*, seed: int = 0, holdout: float = 0.0, **data: Any) -> Source:
    """The source of these settings."""
    return open_source(DataSettings(**data), seed=seed, holdout=holdout)


def surveyed(source: Source) -> Source:
    """The source with what all chunks say, added up in another order than they are in."""
    if not source.wants_survey:
        return source
    totals: dict[str, npt.NDArray[np.float64]] = {}
    for chunk in reversed(range(source.chunks)):
        for name, value in source.statistics(chunk).items():
            assert np.isfinite(value).all()
            totals[name] = totals.get(name, 0) + value
    return source.informed(totals)


def read_all(source: Source, split: Split = "train") -> Batch:
    """All rows of a split."""
    batches = [source.read(chunk, split) for chunk in range(source.chunks)]
    weights = [batch.weight for batch in batches if batch.weight is not None]
    return Batch(
        np.concatenate([batch.x for batch in batches]),
        np.concatenate([batch.y for batch in batches]),
        weight=np.concatenate(weights) if weights else None,
    )


def by_key(batch: Batch) -> list[dict[int, float]]:
    """Each row of hashed features as {key: value}."""
    assert batch.keys is not None
    keys = batch.keys.tolist()
    assert keys == sorted(set(keys))
    rows: list[Mapping[int, float]] = []
    for row in range(len(batch)):
        one = batch.x[[row]].tocoo()
        rows.append({keys[column]: float(value) for column, value in zip(one.col, one.data, strict=True)})
    return [dict(row) for row in rows]
