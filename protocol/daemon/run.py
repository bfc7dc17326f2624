"""Run a daemon's coroutine until it is done or the operator ends it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from protocol.daemon.exit_codes import ExitCode
from protocol.events import about

__all__ = ["announce_ready", "on_hangup", "run", "watch_stdin"]

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
        _log.info("received %s, stopping", number.name, extra=about("stopping"))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    code = await main(stop)
    if code == ExitCode.DONE and received:
        return 128 + received[0]
    return code


def on_hangup(then: Callable[[], None]) -> None:
    """Call ``then`` on SIGHUP, which would end this process otherwise: files are to be read again."""

    def hangup() -> None:
        _log.info("received SIGHUP, reading tokens and certificates again")
        then()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup)


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
    """Log one line ``ready`` and write the addresses as JSON; who sees the file sees all of it.

    What there is by now stays: it is not looked through for garbage again and again from now on.
    """
    gc.freeze()
    words = " ".join(f"{name}={value}" for name, value in addresses.items())
    _log.info("ready %s", words, extra=about("ready", **addresses))
    if ready_file is not None:
        path = Path(ready_file)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({**addresses, "pid": os.getpid()}) + "\n")
        partial.replace(path)
