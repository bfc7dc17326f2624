"""Guarantee 6: synchronous training on a cluster equals one process on the same batches."""

from pathlib import Path

import numpy as np
import pytest

from psctl import LocalCluster
from psworker.data import Batch
from psworker.models import SoftmaxRegression
from psworker.sync import connect

RECORDING_MODEL = '''
import os, pathlib
import numpy as np
from psworker.models import SoftmaxRegression

class Recording(SoftmaxRegression):
    """Softmax regression that keeps each batch it is given, in order, for the test to replay."""

    def gradients(self, parameters, batch):
        directory = pathlib.Path(f"batches-{os.getpid()}")
        directory.mkdir(exist_ok=True)
        np.savez(directory / f"{len(list(directory.iterdir())):06d}.npz", x=batch.x, y=batch.y)
        return super().gradients(parameters, batch)
'''


@pytest.mark.parametrize(("servers", "workers"), [(1, 2), (3, 3)])
def test_staleness_0_equals_one_process(
    servers: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recording.py").write_text(RECORDING_MODEL)
    overrides = (
        "job.name=replay", 'model.kind="recording:Recording"', "data.chunk-rows=100", "train.epochs=2",
        "train.batch-size=32", 'eval.every="never"', "train.staleness=0", "optimizer.lr=0.5",
    )  # fmt: skip
    with LocalCluster(servers=servers, workers=workers, overrides=overrides) as cluster:
        cluster.wait(timeout=100)
        with connect(cluster.address, "replay", observe=True) as ps:
            trained = ps.pull(["w", "b"])

    replayed, steps = replay(tmp_path, lr=0.5)
    assert steps > 30
    for name, value in trained.items():
        assert np.abs(value).max() > 0.01
        scale = np.abs(replayed[name]).max()
        np.testing.assert_allclose(value, replayed[name], rtol=1e-5, atol=1e-5 * scale)


def replay(directory: Path, lr: float) -> tuple[dict[str, np.ndarray], int]:
    """Train in this process, in float64, on the union of the workers' batches of each step.

    A worker's n-th batch is of step n: without evaluations it has one in each step until no chunk is left.
    """
    recorded = sorted(directory.glob("batches-*"))
    ranks = [sorted(worker.iterdir()) for worker in recorded]
    model = SoftmaxRegression(features=64, classes=10)
    parameters = {name: value.astype(np.float64) for name, value in model.parameters().items()}
    steps = max(map(len, ranks))
    for step in range(steps):
        batches = [np.load(files[step]) for files in ranks if step < len(files)]
        union = Batch(
            np.concatenate([batch["x"] for batch in batches]),
            np.concatenate([batch["y"] for batch in batches]),
        )
        gradients = softmax_gradients(parameters, union)
        parameters = {name: parameters[name] - lr * gradients[name] for name in parameters}
    return parameters, steps


def softmax_gradients(parameters: dict[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
    """Written out once more, in float64, so that the model's own arithmetic is not its own oracle."""
    x = batch.x.astype(np.float64)
    scores = x @ parameters["w"] + parameters["b"]
    scores -= scores.max(axis=1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(batch)), batch.y.astype(int)] -= 1
    chances /= len(batch)
    return {"w": x.T @ chances, "b": chances.sum(axis=0)}
