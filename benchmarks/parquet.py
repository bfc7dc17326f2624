"""`python -m benchmarks parquet`: ten million examples in Parquet, beside scikit-learn in one process.

A server and two workers of `psctl train`, and a process with SGDClassifier.partial_fit, train logistic
regression for one epoch on the same chunks of the same files, with the same features, and are evaluated on
the same held-out rows.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.columns import align
from benchmarks.measured_page import with_figures
from benchmarks.parquet_data import CATEGORIES, NUMBERS, Written, write_parquet
from benchmarks.peaks import watched
from benchmarks.progress import progress_on
from psworker.job import job_from_json, job_to_json, load_job

LIMIT_BYTES = 500_000_000
BUCKETS = 256
BATCH = {"dense": 2048, "hashed": 4096}
"""Rows of a mini-batch: a dense one stays in the cache; the keys of a larger one repeat more often."""


def main(arguments: list[str]) -> int:
    """Generate, train both ways, print; 0 where memory is below the limit and both models have learnt."""
    options = _parse(arguments)
    with progress_on(sys.stderr) as progress:
        progress(f"writing {options.rows:,} examples, if they are not there")
        written = write_parquet(options.directory, options.rows)
        reports = {}
        for features in options.features:
            text = _job(written, hashed=features == "hashed", workers=options.workers)
            progress(f"{features} features: psctl train")
            cluster = _cluster(text, options.workers)
            progress(f"{features} features: scikit-learn")
            reports[features] = {"cluster": cluster, "scikit-learn": _peer(text)}
    report = {"benchmark": "parquet", "rows": options.rows, "bytes": written.nbytes, "features": reports}
    print(json.dumps(report) if options.format == "json" else render_text(report))
    if options.docs is not None:
        page = options.docs / "data.md"
        page.write_text(with_figures(page.read_text(), f"```\n{render_text(report)}\n```"))
    return 0 if all(map(_is_good, reports.values())) else 1


def _is_good(report: dict[str, Any]) -> bool:
    cluster, peer = report["cluster"], report["scikit-learn"]
    peaks = [*cluster["peaks"].values(), *peer["peaks"].values()]
    learnt = bool(cluster["loss"] < 1.1 * peer["true_loss"])
    return max(peaks) < LIMIT_BYTES and learnt


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks parquet",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=positive_int, default=10_000_000, metavar="N", help="examples")
    parser.add_argument("--workers", type=positive_int, default=2, metavar="N", help="beside one server")
    parser.add_argument(
        "--features",
        nargs="+",
        choices=("dense", "hashed"),
        default=["dense", "hashed"],
        help="columns, or keys and a table on the server",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir(), "asyncps-parquet"),
        help="where the files are written, and kept for the next run",
    )
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write the figures into data.md there")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _job(written: Written, *, hashed: bool, workers: int) -> str:
    """The job of both, as canonical JSON."""
    settings = [
        "job.name=parquet",
        "model.kind=logistic",
        f"data.source={json.dumps(written.paths)}",
        f"data.columns={json.dumps(NUMBERS)}",
        f"data.categorical={json.dumps(list(CATEGORIES))}",
        "data.chunk-rows=50000",
        f"data.hash-buckets={BUCKETS}",
        f"train.workers={workers}",
        "train.epochs=1",
        f"train.batch-size={BATCH['hashed' if hashed else 'dense']}",
        'train.staleness="inf"',
        "optimizer.name=adagrad",
        "optimizer.lr=0.1",
        "eval.holdout=0.05",
    ]
    if hashed:
        settings.append("data.hashed=true")
    return job_to_json(load_job(None, settings))


def _cluster(text: str, workers: int) -> dict[str, Any]:
    sections = json.loads(text)
    del sections["train"]["workers"]  # a flag of psctl says it
    flags = [
        flag
        for section, table in sections.items()
        for key, value in table.items()
        for flag in ("--set", f"{section}.{key}={_toml(value)}")
    ]
    command = [sys.executable, "-m", "psctl", "train", "--workers", str(workers), "--format", "json", *flags]
    result, peaks = watched(command)
    return {
        "examples": result["examples"],
        "seconds": result["seconds"],
        "loss": result["loss"],
        "peaks": peaks,
    }


def _peer(text: str) -> dict[str, Any]:
    assert job_to_json(job_from_json(text)) == text
    result, peaks = watched([sys.executable, "-m", "benchmarks.parquet_sklearn", text])
    return {**result, "peaks": peaks}


def _toml(value: object) -> str:
    """A value of the job's JSON as TOML has it: they differ in tables alone."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def render_text(report: dict[str, Any]) -> str:
    """The report as tables, and what was measured below them."""
    lines = [["", "examples/s", "held-out log-loss", "of the truth", "largest process, MB"]]
    for features, both in report["features"].items():
        truth = both["scikit-learn"]["true_loss"]
        for key, name in _NAMES.items():
            one = both[key]
            speed = f"{one['examples'] / one['seconds']:,.0f}"
            peak = f"{max(one['peaks'].values()) / 1e6:.0f}"
            lines.append([f"{features}: {name}", speed, f"{one['loss']:.4f}", f"{truth:.4f}", peak])
    said = (
        f"{report['rows']:,} examples, {report['bytes'] / 1e6:,.0f} MB of Parquet.\n"
        f"dense: {len(NUMBERS)} numbers and {BUCKETS} columns for the categories; "
        f"mini-batches of {BATCH['dense']:,}.\n"
        f"hashed: a key for each number and each value of a category; mini-batches of {BATCH['hashed']:,}."
    )
    return "\n".join([align(lines), "", align([["process", "peak MB"], *_peak_lines(report)]), "", said])


_NAMES = {"cluster": "psctl train", "scikit-learn": "SGDClassifier"}


def _peak_lines(report: dict[str, Any]) -> list[list[str]]:
    """The largest process of each module."""
    peaks: dict[str, int] = {}
    for features, both in report["features"].items():
        for key in _NAMES:
            for name, peak in both[key]["peaks"].items():
                module = f"{features}: {name.partition(' ')[0]}"
                peaks[module] = max(peak, peaks.get(module, 0))
    return [[module, f"{peak / 1e6:.0f}"] for module, peak in peaks.items()]
