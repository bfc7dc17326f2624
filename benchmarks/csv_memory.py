"""`python -m benchmarks csv-memory`: train on a CSV larger than memory should ever hold, and watch memory."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.arguments import positive_int
from benchmarks.columns import align
from benchmarks.peaks import watched
from benchmarks.progress import progress_on
from benchmarks.sizes import parse_size

LIMIT_BYTES = 300_000_000
COLUMNS = 20

_BLOCK_ROWS = 100_000


def main(arguments: list[str]) -> int:
    """Generate, train, print the peaks; 0 where all are below the limit and the model is right."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory, progress_on(sys.stderr) as progress:
        path = Path(directory, "generated.csv")
        progress(f"writing {path}")
        written = write_csv(path, options.size)
        progress(f"training on {written / 1e9:.2f} GB")
        result, peaks = train(path, options.workers)
    if options.format == "json":
        print(json.dumps({"benchmark": "csv-memory", "bytes": written, "result": result, "peaks": peaks}))
    else:
        rows = [["process", "peak MB"], *([name, f"{peak / 1e6:.0f}"] for name, peak in peaks.items())]
        print(align(rows))
        seconds, mse = result["seconds"], result["metrics"]["mse"]
        trained = f"{written / 1e9:.2f} GB, {result['examples']:,} training rows in {seconds:.1f} s"
        print(f"\n{trained}; held-out mse {mse:.5f}")
    return 0 if max(peaks.values()) < LIMIT_BYTES and result["metrics"]["mse"] < 0.02 else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks csv-memory",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", type=parse_size, default="2GB", help="of the file")
    parser.add_argument("--workers", type=positive_int, default=2, metavar="N", help="beside one server")
    parser.add_argument("--directory", type=Path, help="where to write the file; it is removed afterwards")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def write_csv(path: Path, size: int) -> int:
    """Write rows of a known linear model until the file has `size` bytes; return how many it has.

    The label is the dot product of the columns with 1, 2, ..., 20, over 10, plus noise of variance 0.01.
    A block of rows is repeated: writing is not what is measured.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_BLOCK_ROWS, COLUMNS)).round(4)
    y = x @ np.arange(1, COLUMNS + 1) / 10 + rng.normal(scale=0.1, size=_BLOCK_ROWS)
    line = ",".join(["%.4f"] * (COLUMNS + 1)) + "\n"
    block = "".join(line % tuple(row) for row in np.c_[x, y]).encode()
    with path.open("wb") as file:
        file.write((",".join(f"x{i}" for i in range(COLUMNS)) + ",label\n").encode())
        while file.tell() < size:
            file.write(block)
        return file.tell()


def train(path: Path, workers: int) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Run `psctl train` on the file; return its result and the peak resident bytes of each process."""
    settings = (
        "job.name=csv", "model.kind=linear", f'data.source="{path}"', "data.chunk-rows=8192",
        "train.epochs=1", "train.batch-size=512", 'train.staleness="inf"', "optimizer.lr=0.05",
    )  # fmt: skip
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-m", "psctl", "train", "--workers", str(workers), "--format", "json", *flags]
    return watched(command)
