"""Run a daemon's coroutine until it is done or the operator ends it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from protocol.daemon.exit_codes import ExitCode

__all__ = ["announce_ready", "run", "watch_stdin"]

_log = logging.getLogger(__name__)

Main = Callable[[asyncio.Event], Coroutine[Any, Any, int]]


def run(main: Main) -> int:
    """Run ``main(stop)`` on uvloop and return its exit code, or the signal's.

    SIGTERM and SIGINT set ``stop``; ``main`` is expected to end cleanly then. A second signal ends the
    process at once.
    """
    try:
        import uvloop  # noqa: PLC0415 (absent on some platforms)
    except ImportError:
        _log.warning("uvloop is not installed: using asyncio's own event loop, at a third of the speed")
        return asyncio.run(_run(main))
    return uvloop.run(_run(main))


async def _run(main: Main) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        _log.info("received %s, stopping", number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    code = await main(stop)
    if code == ExitCode.DONE and received:
        return 128 + received[0]
    return code


async def watch_stdin() -> None:
    """Return when standard input ends: the process that started this one is gone or wants it to stop."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    transport, _ = await loop.connect_read_pipe(lambda: _UntilEnd(ended), sys.stdin)
    try:
        await ended
    finally:
        transport.close()


class _UntilEnd(asyncio.Protocol):
    def __init__(self, ended: asyncio.Future[None]) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def announce_ready(ready_file: str | None, **addresses: str) -> None:
    """Log one line ``ready`` and write the addresses as JSON; who sees the file sees all of it."""
    _log.info("ready %s", " ".join(f"{name}={value}" for name, value in addresses.items()))
    if ready_file is not None:
        path = Path(ready_file)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({**addresses, "pid": os.getpid()}) + "\n")
        partial.replace(path)
