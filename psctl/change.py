"""``psctl set``: change how a job's workers are kept together, and its learning rate, while it runs."""

from __future__ import annotations

import argparse
import asyncio
import math
from typing import Final, NamedTuple

import configargparse

from protocol.credentials import Credentials
from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address, job_name
from protocol.errors import BadRequest
from protocol.messages import Set
from protocol.status import JobStatus
from psctl.figures import printable
from psctl.overview import how_kept_together
from psworker.asking import change, fetch_status
from psworker.job import nearest

__all__ = ["flags", "run", "setting"]

_MOST: Final = (1 << 31) - 1  # what a step or a number of workers may be on the wire


class Setting(NamedTuple):
    """One change: ``value`` is a whole number, or infinity; a rate is a finite number above 0."""

    key: str
    value: float


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl set``."""
    parser.add_argument(
        "settings",
        type=setting,
        nargs="+",
        metavar="KEY=VALUE",
        help="staleness=0 (synchronous), =K (at most K steps apart) or =inf (asynchronous); "
        "backup-workers=N: at staleness 0, how many of the slowest a step does not wait for; "
        "rate=X: what all learning rates are multiplied by, 1 at first",
    )
    parser.add_argument("--job", type=job_name, metavar="NAME", help="the job; without it, the only one")
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Change the job and print what it has now.

    Raises:
        BadRequest: a setting is given twice, or the job cannot have it.
        Unreachable: no server answers.
        UnknownJob: there is no such job; or none was named, and there are several or none.
    """
    request = _request(options.settings, options.job)
    host, port = options.server
    for job in asyncio.run(_changed(host, port, request, credentials_from(options))):
        print(f"job {printable(job.name)}: {how_kept_together(job)}")
    return ExitCode.DONE


def setting(text: str) -> Setting:
    """Return what ``KEY=VALUE`` says.

    Raises:
        argparse.ArgumentTypeError: the key is unknown or the value is not one for it.
    """
    key, equals, value = text.partition("=")
    if key not in _VALUES:
        raise argparse.ArgumentTypeError(f'"{printable(key)}" cannot be set{nearest(key, _VALUES)}')
    number = _rate(value) if key == "rate" else _number(value)
    if not equals or number is None or (number == math.inf and key != "staleness"):
        raise argparse.ArgumentTypeError(f'{key} = "{printable(value)}"; expected {_VALUES[key]}')
    return Setting(key, number)


_VALUES: Final = {
    "staleness": "0 (synchronous), a whole number of steps, or inf (asynchronous)",
    "backup-workers": "a whole number of workers, 0 for none",
    "rate": "a finite number above 0, as 0.5",
}


def _number(text: str) -> float | None:
    if text == "inf":
        return math.inf
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_MOST)) or int(text) > _MOST:
        return None
    return int(text)


def _rate(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _request(settings: list[Setting], job: str | None) -> Set:
    values: dict[str, float] = {}
    for key, value in settings:
        if key in values:
            raise BadRequest("the same setting twice", field=key, value=f"{values[key]:g} and {value:g}")
        values[key] = value
    backup_workers = values.get("backup-workers")
    workers = None if backup_workers is None else int(backup_workers)
    return Set(job, values.get("staleness"), workers, values.get("rate"))


async def _changed(host: str, port: int, request: Set, credentials: Credentials) -> list[JobStatus]:
    """Make the change and return the job as it is then; if none was named, the only one."""
    await change(host, port, request, within=0.0, credentials=credentials)
    status = await fetch_status(host, port, within=0.0, credentials=credentials)
    return [job for job in status.jobs if request.job in (None, job.name)]
