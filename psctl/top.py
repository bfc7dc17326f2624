"""``psctl top``: the status of a cluster, again and again."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import configargparse
from rich.console import Console
from rich.live import Live

from protocol.addresses import join_address
from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address, duration
from protocol.errors import ClusterError
from protocol.json_text import json_text
from protocol.status import ClusterStatus
from psctl.dashboard import Dashboard, View, shown_job
from psctl.figures import span
from psctl.keys import DOWN, PAGE_DOWN, PAGE_UP, UP, on_keys
from psctl.overview import overview
from psctl.screen import console_for
from psworker.asking import fetch_status

__all__ = ["Show", "Silence", "flags", "run", "watch"]

_LEAST_PAUSE: Final = 0.1  # seconds; a status costs the coordinator a little of what it has for the job


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
    access_flags(parser)


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
    credentials = credentials_from(options)
    console = console_for("stdout")
    live = options.format == "text" and console.is_terminal and not console.is_dumb_terminal
    screen = _Screen(console, join_address(host, port), options.every) if live else None
    show = screen.show if screen is not None else _printing(options.format, console)
    watching = watch(
        lambda: fetch_status(host, port, within=0.0, credentials=credentials),
        show,
        lambda: asyncio.sleep(options.every),
    )
    try:
        return asyncio.run(_until_ended(watching, screen))
    except BrokenPipeError:  # who reads, such as head, has seen enough
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())  # or Python would complain at its exit
        return ExitCode.DONE
    finally:
        if screen is not None:
            screen.stop()


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


async def _until_ended(watching: Coroutine[Any, Any, NoReturn], screen: _Screen | None) -> int:
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
    if screen is not None:
        loop.add_signal_handler(signal.SIGWINCH, screen.draw)
    with on_keys({"q": task.cancel, **screen.keys()}, task.cancel) if screen is not None else nullcontext():
        await asyncio.wait([task])
    return code if task.cancelled() else task.result()


class _Screen:
    """Draws the last status over the whole terminal, and does what the keys say.

    Args:
        console: of the terminal.
        address: the coordinator's.
        every: seconds between two looks.
    """

    def __init__(self, console: Console, address: str, every: float) -> None:
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._console = console
        self._address = address
        self._ending = f"every {every:g} s; q or Ctrl-C ends"
        self._view = View()
        self._last: tuple[ClusterStatus, Silence | None] | None = None

    def show(self, status: ClusterStatus, silence: Silence | None) -> None:
        """Draw a status."""
        self._last = (status, silence)
        self._live.start()  # not earlier: that no cluster is there is said on the screen that stays
        self.draw()

    def draw(self) -> None:
        """Draw what is known, as large as the terminal is now."""
        if self._last is not None:
            status, silence = self._last
            note = self._ending if silence is None else _no_answer(silence)
            drawn = Dashboard(status, self._view, self._address, note, alarming=silence is not None)
            self._live.update(drawn, refresh=True)

    def stop(self) -> None:
        """Have the terminal be as before."""
        self._live.stop()

    def keys(self) -> Mapping[str, Callable[[], None]]:
        """Return what keys do: go to other workers, to the next job, and to the whole run or its end."""
        page = max(1, self._console.height // 3)
        return {
            "\t": lambda: self._look(replace(self._view, job=self._view.job + 1, worker=0)),
            "w": lambda: self._look(replace(self._view, whole=not self._view.whole)),
            DOWN: lambda: self._scroll(1),
            UP: lambda: self._scroll(-1),
            PAGE_DOWN: lambda: self._scroll(page),
            PAGE_UP: lambda: self._scroll(-page),
        }

    def _scroll(self, lines: int) -> None:
        job = shown_job(self._last[0], self._view) if self._last is not None else None
        last = len(job.workers) - 1 if job is not None else 0
        self._look(replace(self._view, worker=max(0, min(self._view.worker + lines, last))))

    def _look(self, view: View) -> None:
        self._view = view
        self.draw()


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
