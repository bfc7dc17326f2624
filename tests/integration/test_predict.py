"""A job that was trained on a file predicts other files, when that one is gone."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from psctl import LocalCluster

JOB = """
[model]
kind = "logistic"
[data]
source = "{}"
target = "sick"
classes = ["no", "yes"]
scale = "standard"
missing = "mean"
class-weights = "balanced"
[train]
epochs = 3
"""


def predict(address: str, *flags: str) -> str:
    command = [sys.executable, "-m", "psctl", "predict", "--server", address, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_training_file_may_be_gone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes, heats = rng.normal(1000, 30, 600), rng.normal(-5, 0.01, 600)
    sick = (sizes - 1000) / 30 > (heats + 5) / 0.01  # which nothing learns from numbers as they are
    lines = [f"{s},{h},{'yes' if y else 'no'}" for s, h, y in zip(sizes, heats, sick, strict=True)]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["size,heat,sick", *lines, ""]))
    (tmp_path / "job.toml").write_text(JOB.format(path))
    with LocalCluster(servers=1, workers=1, job=tmp_path / "job.toml") as cluster:
        cluster.wait(timeout=100)
        path.unlink()
        with gzip.open(tmp_path / "new.csv.gz", "wt") as packed:
            packed.write("heat,size\n-5.02,1060\n-4.98,940\n-4.98,\n")
        table = pa.table({"heat": [-5.02, -4.98], "size": [1060, None]})
        parquet.write_table(table, tmp_path / "new.parquet")
        files = [str(tmp_path / "new.csv.gz"), str(tmp_path / "new.parquet")]
        assert predict(cluster.address, "--input", *files).split() == ["yes", "no", "no", "yes", "no"]
