"""``psctl predict``: what a job's model makes of rows, while it is trained or afterwards."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import configargparse
import numpy as np

from protocol.daemon.access_flags import access_flags, access_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.errors import UnknownJob
from psctl.predictions import Tally, header, in_order, text_of
from psworker.client import Client, connect
from psworker.errors import DataError
from psworker.job import Job, load_job
from psworker.predict import Predictor
from psworker.unlabelled import FORMATS, Piece

__all__ = ["flags", "run"]

T = TypeVar("T")


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
        nargs="+",
        default="-",
        metavar="FILE|-",
        help="rows as the job's data has them, with the target or without; files, patterns or URLs, packed "
        "(.gz, .bz2, .xz, .zst) or not, read in that order; -: standard input, of lines",
    )
    parser.add_argument(
        "--input-format",
        choices=FORMATS,
        help="of the input. csv: a header and rows; json: one object a line; libsvm; parquet; npy or npz: "
        "NumPy's arrays (default: what a name ends in, .csv, .jsonl ..., or else as the job's data, or csv)",
    )
    parser.add_argument(
        "--output", default="-", metavar="FILE|-", help="where predictions are written, a line for each row"
    )
    parser.add_argument(
        "--format",
        choices=["text", "json", "csv"],
        default="text",
        help="form of the predictions; where the job has on-error = skip, that of a row that cannot be read "
        "is an empty line, null, or empty fields",
    )
    parser.add_argument("--probabilities", action="store_true", help="tell that of each class, too")
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Predict and write, row by row, until the input ends.

    Raises:
        JobError: the job file, or what the job says, cannot be used; or the model cannot predict.
        DataError: the input cannot be read. The rows before that have been predicted.
        UnknownJob: there is no such job, or it has no parameters yet; or none was named, and there are
            several or none.
        PSError: as ``psworker.client.connect``.
    """
    job = load_job(Path(options.job), ()) if options.job and options.job.endswith(".toml") else None
    try:
        asyncio.run(_predict(options, job))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: so be it
    return ExitCode.DONE


async def _predict(options: argparse.Namespace, job: Job | None) -> None:
    async with _connected(options, options.job if job is None else job.name) as client:
        predictor = await Predictor.of(client, job)
        pieces = predictor.read(options.input, options.input_format)
        tally = Tally()
        try:
            with _opened(options.output) as write:
                await _write(predictor, pieces, options, write, tally)
        finally:
            if said := tally.text(options.format):
                print(said, file=sys.stderr)


async def _write(
    predictor: Predictor,
    pieces: Iterator[Piece],
    options: argparse.Namespace,
    write: Callable[[str], None],
    tally: Tally,
) -> None:
    classes = predictor.job.data.classes
    names = list(classes)
    begun = False
    while (piece := await _in_thread(partial(next, pieces, None))) is not None:
        predicted, probabilities = np.empty(0), None
        if len(piece.batch):
            predicted = await predictor.predict(piece.batch)
        # Of no row, too: how many classes there are is what the heading of the first rows needs.
        if options.probabilities and (len(piece.batch) or not begun):
            probabilities = await predictor.probabilities(piece.batch)
            names = names or [str(number) for number in range(probabilities.shape[1])]
        told = names if options.probabilities else []
        rows = in_order(predicted, probabilities, piece.lost, classes)
        tally.add(rows)
        text = text_of(options.format, rows, told)
        write(text if begun else header(options.format, told) + text)
        begun = True
    if not begun:
        write(header(options.format, names if options.probabilities else []))


async def _in_thread(work: Callable[[], T]) -> T:
    """Await what may wait for input for ever, in a thread that nobody has to wait for at the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(done: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(lambda: None if future.done() else done())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            failed = error
            tell(lambda: future.set_exception(failed))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=run, name="input", daemon=True).start()
    return await future


@asynccontextmanager
async def _connected(options: argparse.Namespace, name: str | None) -> AsyncIterator[Client]:
    host, port = options.server
    access = access_from(options)
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                connect(
                    f"{host}:{port}",
                    name,
                    observe=True,
                    reconnect_for=0.0,
                    token_file=access.token_file,
                    tls=access.tls,
                )
            )
        except UnknownJob as error:
            raise UnknownJob(_remedy(error), field=error.field, value=error.value) from error
        yield client


def _remedy(error: UnknownJob) -> str:
    if error.field == "job":
        return f"{error.message}; psctl status shows those that there are"
    if error.value == "(none)":
        return (
            "the cluster has no job yet: train one (psworker --job FILE), or have the servers go on from its "
            "checkpoints (psctl up --checkpoint-dir DIR)"
        )
    return "the cluster has several jobs: say which with --job NAME"


@contextmanager
def _opened(name: str) -> Iterator[Callable[[str], None]]:
    """Open what predictions are written to, and give what writes there at once."""

    def write(text: str) -> None:
        left = memoryview(text.encode())
        with _naming(name):
            while left:
                left = left[file.write(left) :]

    with _naming(name):
        file = open(1 if name == "-" else name, "wb", buffering=0, closefd=name != "-")  # noqa: SIM115
    with file:
        yield write


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what = "standard output" if name == "-" else name
        raise DataError(what, None, f"{error.strerror}; correct the name, or make room") from error
