"""``psctl predict``: what a job's model makes of rows, while it is trained or afterwards."""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import configargparse
import numpy.typing as npt

from protocol.daemon.access_flags import access_flags, access_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from psworker.client import connect
from psworker.errors import DataError
from psworker.job import Job, load_job
from psworker.online.records import LineSplitter, text_of
from psworker.online.rows import MakeBatch
from psworker.predict import Predictor

__all__ = ["flags", "run"]

_BLOCK: Final = 1 << 16
_MOST: Final = 1024  # rows at a time


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl predict``."""
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument(
        "--job",
        metavar="NAME|FILE",
        help="the job, or its file (which ends in .toml): that is needed for a model of one's own; "
        "without it, the only job that there is",
    )
    parser.add_argument(
        "--input",
        default="-",
        metavar="FILE|-",
        help="rows as the job's data has them; the target may be missing",
    )
    parser.add_argument(
        "--input-format",
        choices=["csv", "json"],
        help="of the input: a header and rows, or one object a line (default: as the job's stream, else csv)",
    )
    parser.add_argument(
        "--output", default="-", metavar="FILE|-", help="where predictions are written, one a row"
    )
    parser.add_argument(
        "--format", choices=["text", "json", "csv"], default="text", help="form of the predictions"
    )
    parser.add_argument("--probabilities", action="store_true", help="tell that of each class, too")
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Predict and write, row by row, until the input ends.

    Raises:
        JobError: the job file, or what the job says, cannot be used; or the model cannot predict.
        DataError: the input cannot be read.
        UnknownJob: there is no such job, or none was named, and there are several or none.
        PSError: as ``psworker.client.connect``.
    """
    job = load_job(Path(options.job), ()) if options.job and options.job.endswith(".toml") else None
    try:
        with _opened(options.input, "rb", 0) as source, _opened(options.output, "wb", 1) as sink:
            asyncio.run(_predict(options, job, source.fileno(), sink))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: so be it
    return ExitCode.DONE


@contextmanager
def _opened(name: str, mode: str, descriptor: int) -> Iterator[IO[bytes]]:
    try:
        file = open(descriptor if name == "-" else name, mode, buffering=0, closefd=name != "-")  # noqa: SIM115
    except OSError as error:
        raise DataError(name, None, f"{error.strerror}; correct the name or the file") from error
    with file:
        yield file


async def _predict(options: argparse.Namespace, job: Job | None, source: int, sink: IO[bytes]) -> None:
    host, port = options.server
    access = access_from(options)
    name = options.job if job is None else job.name
    async with connect(
        f"{host}:{port}",
        name,
        observe=True,
        reconnect_for=0.0,
        token_file=access.token_file,
        tls=access.tls,
    ) as client:
        predictor = await Predictor.of(client, job)
        make_batch: MakeBatch | None = None
        form = _Form(options.format, predictor.job.data.classes)
        splitter = LineSplitter(options.input)
        ended = False
        while not ended:
            block = await asyncio.to_thread(os.read, source, _BLOCK)
            ended = not block
            records = splitter.feed(block) if block else splitter.rest()
            lines = [record.text for record in records if record.text.strip()]
            if make_batch is None and lines:
                make_batch, lines = _reader(predictor, options.input_format, lines)
            for begin in range(0, len(lines), _MOST):
                assert make_batch is not None  # noqa: S101 (there were lines)
                text = await _predicted(predictor, make_batch, lines[begin : begin + _MOST], form, options)
                _write_all(sink, text.encode())


def _write_all(sink: IO[bytes], text: bytes) -> None:
    left = memoryview(text)
    while left:
        left = left[sink.write(left) :]


def _reader(predictor: Predictor, form: str | None, lines: list[bytes]) -> tuple[MakeBatch, list[bytes]]:
    """Return what reads lines like these, and those of them that are rows."""
    job = predictor.job
    as_json = form == "json" if form else job.stream is not None and job.stream.format == "json"
    fields = job.stream.fields if job.stream is not None and not as_json else ()
    header: str | None = None
    columns: tuple[str, ...] = ()
    if not as_json and not fields:
        header, lines = text_of("the input", lines[0]).removeprefix("\ufeff"), lines[1:]
        separator = max(",;\t", key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
        columns = tuple(name for name in names if name != job.data.target)
    rows = predictor.rows(json=as_json, fields=fields, columns=columns)
    return rows.unlabelled(lines[0] if lines else b"").under(header, predictor.adjustment), lines


async def _predicted(
    predictor: Predictor,
    make_batch: MakeBatch,
    lines: Sequence[bytes],
    form: _Form,
    options: argparse.Namespace,
) -> str:
    batch = await asyncio.to_thread(make_batch, lines)
    if not len(batch):
        return ""
    predicted = await predictor.predict(batch)
    probabilities = await predictor.probabilities(batch) if options.probabilities else None
    return form.text(predicted, probabilities)


class _Form:
    """How predictions are written."""

    def __init__(self, form: str, classes: Sequence[str]) -> None:
        self._write: Callable[..., str] = {"text": self._plain, "json": self._json, "csv": self._csv}[form]
        self._classes = classes
        self._begun = False

    def text(self, predicted: npt.NDArray[Any], probabilities: npt.NDArray[Any] | None) -> str:
        """Return a line for each prediction."""
        rows = [None] * len(predicted) if probabilities is None else probabilities.tolist()
        text = self._write([self._shown(value) for value in predicted.tolist()], rows)
        self._begun = True
        return text

    def _shown(self, value: float) -> str | int | float:
        """A class by its name, if it has one."""
        if isinstance(value, int):
            return self._classes[value] if self._classes else value
        return float(f"{value:.7g}")  # as many digits as a float32 has

    def _names(self, count: int) -> list[str]:
        return list(self._classes) or [str(number) for number in range(count)]

    def _plain(self, predicted: Sequence[object], rows: Sequence[Sequence[float] | None]) -> str:
        lines = [
            " ".join([str(value), *(f"{one:.6g}" for one in row or ())])
            for value, row in zip(predicted, rows, strict=True)
        ]
        return "".join(f"{line}\n" for line in lines)

    def _csv(self, predicted: Sequence[object], rows: Sequence[Sequence[float] | None]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._begun:
            writer.writerow(
                ["prediction", *(f"p({name})" for name in self._names(len(rows[0] or ())) if rows[0])]
            )
        for value, row in zip(predicted, rows, strict=True):
            writer.writerow([value, *(f"{one:.6g}" for one in row or ())])
        return text.getvalue()

    def _json(self, predicted: Sequence[object], rows: Sequence[Sequence[float] | None]) -> str:
        lines = []
        for value, row in zip(predicted, rows, strict=True):
            found: dict[str, object] = {"prediction": value}
            if row is not None:
                rounded = [float(f"{one:.6g}") for one in row]
                found["probabilities"] = dict(zip(self._names(len(row)), rounded, strict=True))
            lines.append(json.dumps(found, ensure_ascii=False))
        return "".join(f"{line}\n" for line in lines)
