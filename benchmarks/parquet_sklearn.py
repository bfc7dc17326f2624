"""The other side of `python -m benchmarks parquet`: one process with scikit-learn's SGDClassifier.

It reads the same chunks with the same code, so it has the same features and the same held-out rows; what
differs is who computes. `python -m benchmarks.parquet_sklearn JOB` (canonical JSON) prints a JSON object.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import SGDClassifier

from benchmarks.parquet_data import LOGIT
from psworker.data import Batch, open_source
from psworker.job import Job, job_from_json
from psworker.keys import hash_features

_SPACE = 1 << 18
"""Columns for hashed features, of which SGDClassifier has to know how many there are."""


def main(text: str) -> None:
    """Train one epoch on the job's data, evaluate, print."""
    job = job_from_json(text)
    source = open_source(job.data, seed=job.seed, holdout=job.eval.holdout)
    model = SGDClassifier(loss="log_loss", alpha=1e-7, learning_rate="invscaling", eta0=0.05, power_t=0.25)
    began, examples = time.perf_counter(), 0
    order = np.random.default_rng(job.seed).permutation(source.chunks)
    for chunk in order.tolist():
        batch = source.read(chunk, "train")
        rows = np.random.default_rng((job.seed, chunk)).permutation(len(batch))
        model.partial_fit(design(batch)[rows], batch.y[rows], classes=[0, 1])
        examples += len(batch)
    seconds = time.perf_counter() - began
    found = {
        "examples": examples,
        "seconds": seconds,
        "loss": _held_out_loss(job, lambda batch: model.decision_function(design(batch))),
        "true_loss": true_loss(job),
    }
    print(json.dumps(found))


def true_loss(job: Job) -> float:
    """The mean log-loss of the held-out rows under the model that made their labels.

    Its logit is read in place of a feature: as many columns are cut into the same chunks.
    """
    logit = replace(job, data=replace(job.data, columns=(LOGIT, *job.data.columns[1:])))
    return _held_out_loss(logit, _logits)


def _logits(batch: Batch) -> npt.NDArray[np.float32]:
    if batch.keys is None:
        return batch.x[:, 0]  # type: ignore[no-any-return]
    column = np.searchsorted(batch.keys, hash_features([LOGIT])[0])
    return batch.x[:, [column]].toarray()[:, 0]  # type: ignore[no-any-return]


def _held_out_loss(job: Job, logits: Callable[[Batch], npt.NDArray[Any]]) -> float:
    source = open_source(job.data, seed=job.seed, holdout=job.eval.holdout)
    total, count = 0.0, 0
    for chunk in range(source.chunks):
        batch = source.read(chunk, "holdout")
        if len(batch):
            z = logits(batch).astype(np.float64)
            total += float((np.logaddexp(0, z) - batch.y * z).sum())
            count += len(batch)
    return total / count


def design(batch: Batch) -> npt.NDArray[np.float32]:
    """x as scikit-learn takes it: hashed features as columns of a wide sparse matrix."""
    if batch.keys is None:
        return batch.x  # type: ignore[no-any-return]
    from scipy.sparse import csr_array

    columns = (batch.keys % np.uint64(_SPACE)).astype(np.int32)
    return csr_array(  # type: ignore[no-any-return]
        (batch.x.data, columns[batch.x.indices], batch.x.indptr), shape=(len(batch), _SPACE)
    )


if __name__ == "__main__":
    main(sys.argv[1])
