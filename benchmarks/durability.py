"""`python -m benchmarks durability`: what it costs that nothing is lost, and how soon servers are back."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.arguments import positive_float, positive_int
from benchmarks.durability_checkpoints import measure_checkpoints
from benchmarks.durability_disk import NoRoom, check_room
from benchmarks.durability_log import measure_dense, measure_small
from benchmarks.durability_pusher import PusherFailed
from benchmarks.durability_restarts import measure_kills, measure_stops
from benchmarks.durability_rows import Table, as_json, render_text
from benchmarks.progress import Progress, progress_on
from benchmarks.sizes import parse_size
from benchmarks.small_pushes import LoadFailed
from protocol.errors import PSError
from psctl import ProcessFailed

Part = Callable[[argparse.Namespace, Path, Progress], Table]


def _checkpoints(options: argparse.Namespace, directory: Path, progress: Progress) -> Table:
    settings = (options.model, options.pushed, options.repeat, options.seconds)
    return measure_checkpoints(directory, *settings, progress)


def _dense(options: argparse.Namespace, directory: Path, progress: Progress) -> Table:
    return measure_dense(directory, options.dense, options.repeat, options.seconds, progress)


def _small(options: argparse.Namespace, directory: Path, progress: Progress) -> Table:
    return measure_small(directory, options.connections, options.repeat, options.seconds, progress)


def _kills(options: argparse.Namespace, directory: Path, progress: Progress) -> Table:
    return measure_kills(directory, options.model, options.repeat, options.seconds, progress)


def _stops(options: argparse.Namespace, directory: Path, progress: Progress) -> Table:
    return measure_stops(directory, options.model, options.repeat, options.seconds, progress)


PARTS: dict[str, Part] = {
    "checkpoint": _checkpoints,
    "log": _dense,
    "small": _small,
    "kill": _kills,
    "stop": _stops,
}


def main(arguments: list[str]) -> int:
    """Measure, print the result; 0 where all targets are met."""
    options = _parse(arguments)
    try:
        check_room(options.directory, _needed(options))
        with (
            tempfile.TemporaryDirectory(dir=options.directory, prefix="durability-") as directory,
            progress_on(sys.stderr) as progress,
        ):
            tables = [PARTS[name](options, Path(directory), progress) for name in options.parts]
    except (NoRoom, PusherFailed, LoadFailed, ProcessFailed, PSError, OSError) as error:
        print(f"durability: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps({"benchmark": "durability", "model": options.model, "parts": as_json(tables)}))
    else:
        print(render_text(tables))
    return 0 if all(row.is_met for table in tables for row in table.rows) else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks durability",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--parts",
        type=_names,
        default=",".join(PARTS),
        metavar="LIST",
        help="what to measure, separated by commas",
    )
    parser.add_argument(
        "--model", type=_size, default="1GB", metavar="SIZE", help="of the servers' parameters"
    )
    parser.add_argument(
        "--pushed", type=_sizes, default="1MB,1KB", metavar="LIST", help="tensors pushed beside checkpoints"
    )
    parser.add_argument(
        "--dense", type=_sizes, default="100MB,1MB", metavar="LIST", help="tensors pushed to the log"
    )
    parser.add_argument(
        "--connections", type=positive_int, default=16, metavar="N", help="that push 1 KB each to the log"
    )
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="N", help="rounds")
    parser.add_argument("--seconds", type=positive_float, default=3.0, metavar="S", help="of each load")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="on the disk that is measured; all that is written there is removed",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: give some of {', '.join(PARTS)}")
    return names


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(_size, text.split(","))))


def _needed(options: argparse.Namespace) -> int:
    """Return about how many bytes the parts have on the disk at most, at a time."""
    most: dict[str, float] = {
        "checkpoint": 5 * options.model,  # three are kept, one is being written, and the disk's own file
        "log": _FASTEST * options.seconds + 2e9,
        "small": 1e9,
        "kill": 4 * options.model + _FASTEST * options.seconds,
        "stop": 4 * options.model + _FASTEST * options.seconds,
    }
    return int(max(most[name] for name in options.parts))


_FASTEST = 2e9  # bytes a second that a log may grow
