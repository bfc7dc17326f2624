"""``psctl top``: the status of a cluster, again and again."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import configargparse
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address, duration
from protocol.errors import ClusterError
from protocol.status import ClusterStatus
from psctl.figures import span
from psctl.json_text import json_text
from psctl.keys import on_key
from psctl.overview import overview
from psctl.screen import console_for
from psworker.asking import fetch_status

__all__ = ["Show", "Silence", "flags", "run", "watch"]

_LEAST_PAUSE: Final = 0.1  # seconds; a status costs the coordinator a little of what it has for the job
_LEAST_WORKERS: Final = 5


@dataclass(frozen=True, slots=True)
class Silence:
    """The cluster does not answer: why not, when it last did (wall clock), and how many seconds ago."""

    reason: ClusterError
    since: float
    seconds: float


Show = Callable[[ClusterStatus, Silence | None], None]
"""Shows the last status that is known, and that nobody answers any more if so."""


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl top``."""
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument(
        "--every", type=_interval, default="1s", metavar="TIME", help="pause between two looks"
    )
    parser.add_argument(
        "--format",
        choices=["text", "json"],
        default="text",
        help="text: live on a terminal, elsewhere one status after the other; json: one object a line",
    )


def _interval(text: str) -> float:
    seconds = duration(text)
    if seconds < _LEAST_PAUSE:
        raise argparse.ArgumentTypeError(f"{text!r} is too short; write for example 100ms, 1s or 5s")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Show the status until Ctrl-C, ``q``, SIGTERM, or the end of who reads it.

    Raises:
        Unreachable: no server answers at the first time.
        PSError: the server is not a coordinator.
    """
    host, port = options.server
    console = console_for("stdout")
    live = options.format == "text" and console.is_terminal and not console.is_dumb_terminal
    with _screen(console, options.every) if live else nullcontext(_printing(options.format, console)) as show:
        watching = watch(
            lambda: fetch_status(host, port, within=0.0), show, lambda: asyncio.sleep(options.every)
        )
        try:
            return asyncio.run(_until_ended(watching, keys=live))
        except BrokenPipeError:  # who reads, such as head, has seen enough
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())  # or Python would complain at its exit
            return ExitCode.DONE


async def watch(
    fetch: Callable[[], Awaitable[ClusterStatus]],
    show: Show,
    pause: Callable[[], Awaitable[None]],
    clock: Callable[[], float] = time.time,
) -> NoReturn:
    """Fetch the status and show it, again and again; go on while the cluster does not answer.

    Args:
        fetch: returns the status.
        show: what to do with it.
        pause: waits between two looks.
        clock: the time of day, in seconds.

    Raises:
        PSError: the first status could not be had, or a later one for a reason that will not go away.
    """
    status = await fetch()
    heard = clock()
    show(status, None)
    while True:
        await pause()
        try:
            status = await fetch()
        except ClusterError as error:
            show(status, Silence(error, heard, clock() - heard))
        else:
            heard = clock()
            show(status, None)


async def _until_ended(watching: Coroutine[Any, Any, NoReturn], *, keys: bool) -> int:
    """Run ``watching`` until the operator has seen enough."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(watching)
    code = ExitCode.DONE

    def terminate() -> None:
        nonlocal code
        code = ExitCode.TERMINATED
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, task.cancel)
    loop.add_signal_handler(signal.SIGTERM, terminate)  # or the terminal would stay as it is now
    with on_key("q", task.cancel) if keys else nullcontext():
        await asyncio.wait([task])
    return code if task.cancelled() else task.result()


@contextmanager
def _screen(console: Console, every: float) -> Iterator[Show]:
    """Yield what draws a status over the whole terminal, which is as before at the end."""
    ending = Text(f"every {every:g} s; q or Ctrl-C ends", style="dim")
    live = Live(console=console, screen=True, auto_refresh=False)

    def show(status: ClusterStatus, silence: Silence | None) -> None:
        live.start()  # not earlier: that no cluster is there is said on the screen that stays
        heading = Text(_no_answer(silence), style="bold red") if silence is not None else ending
        alone = overview(status, width=console.width, most_workers=0, tensors=False)
        room = console.height - len(console.render_lines(Group(heading, alone)))
        most = max(_LEAST_WORKERS, room // max(1, len(status.jobs)))
        drawn = overview(status, width=console.width, most_workers=most, tensors=False)
        live.update(Group(heading, drawn), refresh=True)

    try:
        yield show
    finally:
        live.stop()


def _printing(form: str, console: Console) -> Show:
    """Return what prints each status, and once per silence that there is one."""
    silent = False

    def show(status: ClusterStatus, silence: Silence | None) -> None:
        nonlocal silent
        if silence is None:
            print(json_text(status) if form == "json" else _text(console, status), flush=True)
        elif not silent:
            print(_no_answer(silence), file=sys.stderr if form == "json" else sys.stdout, flush=True)
        silent = silence is not None

    return show


def _text(console: Console, status: ClusterStatus) -> str:
    with console.capture() as captured:
        console.print(overview(status, width=console.width))
    return captured.get()


def _no_answer(silence: Silence) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(silence.since))
    return f"no answer since {since} ({span(silence.seconds)}), trying on: {silence.reason}"
