"""Guarantee 6: synchronous training on a cluster equals one process on the same batches."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from psctl import LocalCluster
from psworker.data import Batch
from psworker.models import SoftmaxRegression
from psworker.sync import connect
from tests.integration.points import CLASSES, FEATURES, write_points

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


@pytest.mark.parametrize(("servers", "workers"), [pytest.param(1, 2, marks=pytest.mark.long), (3, 3)])
def test_staleness_0_equals_one_process(
    servers: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recording.py").write_text(RECORDING_MODEL)
    overrides = (
        "job.name=replay", 'model.kind="recording:Recording"', "data.chunk-rows=50", "train.epochs=4",
        "train.batch-size=16", 'eval.every="never"', "train.staleness=0", "optimizer.lr=0.5",
    )  # fmt: skip
    job = write_points(tmp_path)
    with LocalCluster(servers=servers, workers=workers, job=job, overrides=overrides) as cluster:
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
    model = SoftmaxRegression(features=FEATURES, classes=CLASSES)
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


FOLLOWED_MODEL = """
import os, pathlib
import numpy as np
from psworker.models import SoftmaxRegression

class Followed(SoftmaxRegression):
    \"\"\"Softmax regression that keeps each batch with the parameters that it saw.\"\"\"

    def gradients(self, parameters, batch):
        directory = pathlib.Path(f"batches-{os.getpid()}")
        directory.mkdir(exist_ok=True)
        file = directory / f"{len(list(directory.iterdir())):06d}.npz"
        np.savez(file.with_suffix(".tmp.npz"), x=batch.x, y=batch.y, w=parameters["w"], b=parameters["b"])
        file.with_suffix(".tmp.npz").rename(file)
        return super().gradients(parameters, batch)
"""


def test_staleness_0_stays_correct_while_workers_die_and_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is the mean over all batches that were computed on its parameters, on all servers alike."""
    monkeypatch.chdir(tmp_path)
    Path("followed.py").write_text(FOLLOWED_MODEL)
    overrides = (
        "job.name=followed", 'model.kind="followed:Followed"', "data.chunk-rows=50", "train.epochs=16",
        "train.batch-size=25", 'eval.every="never"', "train.staleness=0", "optimizer.lr=0.5",
    )  # fmt: skip
    job = write_points(tmp_path)
    with LocalCluster(servers=2, workers=3, job=job, overrides=overrides) as cluster:
        until_batches(tmp_path, 60)
        victim = cluster.workers[1]
        os.kill(victim.pid, signal.SIGKILL)
        late = cluster.add_worker("late")
        while any(worker.returncode is None for worker in cluster.workers):
            time.sleep(0.02)
        assert [worker.returncode for worker in cluster.workers] == [0, -signal.SIGKILL, 0, 0]
        with connect(cluster.address, "followed", observe=True) as ps:
            trained = ps.pull(["w", "b"])

    steps = steps_by_parameters(tmp_path)
    assert any(f"batches-{late.pid}" in batches for _, batches in steps.values()), "it came too late"
    follow(steps, trained, killed=f"batches-{victim.pid}", lr=0.5)


def until_batches(directory: Path, count: int) -> None:
    while sum(1 for _ in directory.glob("batches-*/*.npz")) < count:
        time.sleep(0.01)


Parameters = dict[str, np.ndarray]
Steps = dict[bytes, tuple[Parameters, dict[str, Batch]]]


def steps_by_parameters(directory: Path) -> Steps:
    """Return, for each version of the parameters, the batch that each worker computed on it."""
    steps: Steps = {}
    for file in directory.glob("batches-*/[0-9]*[0-9].npz"):
        kept = np.load(file)
        parameters = {"w": kept["w"], "b": kept["b"]}
        key = kept["w"].tobytes() + kept["b"].tobytes()
        batches = steps.setdefault(key, (parameters, {}))[1]
        assert file.parent.name not in batches, "a worker saw one version twice"
        batches[file.parent.name] = Batch(kept["x"], kept["y"])
    return steps


def follow(steps: Steps, trained: Parameters, *, killed: str, lr: float) -> None:
    """Go from the initial to the trained parameters; only the killed one's last batch may be missing."""
    left = dict(steps)
    current = next(key for key, (parameters, _) in left.items() if not parameters["w"].any())
    without_killed = 0
    while left:
        parameters, batches = left.pop(current)
        targets = [trained, *(one for one, _ in left.values())]
        after = next_version(parameters, batches, targets, lr)
        if after is None:
            assert killed in batches, "a step is not the mean of its batches"
            without_killed += 1
            after = next_version(parameters, {n: b for n, b in batches.items() if n != killed}, targets, lr)
            assert after is not None, "a step is not the mean of its batches"
        current = after["w"].tobytes() + after["b"].tobytes()
    assert without_killed <= 1
    assert current == trained["w"].tobytes() + trained["b"].tobytes()


def next_version(
    parameters: Parameters, batches: dict[str, Batch], versions: list[Parameters], lr: float
) -> Parameters | None:
    """Return the version that a step with these batches leads to, if there is one."""
    if not batches:
        return None
    union = Batch(
        np.concatenate([batch.x for batch in batches.values()]),
        np.concatenate([batch.y for batch in batches.values()]),
    )
    gradients = softmax_gradients({n: v.astype(np.float64) for n, v in parameters.items()}, union)
    for version in versions:
        if all(
            np.allclose(
                version[name] - parameters[name].astype(np.float64),
                -lr * gradients[name],
                rtol=1e-3,
                atol=1e-5 * np.abs(parameters[name]).max() + 1e-7,
            )
            for name in parameters
        ):
            return version
    return None
