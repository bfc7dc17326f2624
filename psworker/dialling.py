"""Reach a server: addresses, the hello, and trying again while nobody answers."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from typing import Final

import protocol
from protocol.connection import Connection, RefuseAll, Traffic, dial
from protocol.errors import Unreachable
from protocol.frames import VERSION
from protocol.messages import Hello

__all__ = ["MAX_PAYLOAD", "greet", "reach"]

_log = logging.getLogger(__name__)

MAX_PAYLOAD: Final = 1 << 40
"""Largest reply accepted: replies are as large as what was asked for, which the client knows."""

_ANSWER_WITHIN: Final = 5.0  # seconds for the connection and the hello; a hung server takes connections too
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


async def greet(host: str, port: int, hello: Hello, traffic: Traffic) -> Connection:
    """Connect once and say hello.

    Raises:
        OSError: nobody answers.
        PSError: the server refuses.
    """
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            connection = await dial(host, port, RefuseAll(), max_payload=MAX_PAYLOAD, traffic=traffic)
            try:
                await connection.request(hello)
            except BaseException:
                connection.abort()
                raise
    except TimeoutError:
        reason = f"no answer within {_ANSWER_WITHIN:g} s: is it psserver, and not its metrics port?"
        raise TimeoutError(errno.ETIMEDOUT, reason) from None
    return connection


async def reach(host: str, port: int, *, within: float, traffic: Traffic, rng: random.Random) -> Connection:
    """Connect to a coordinator and say hello, trying again for ``within`` seconds while nobody answers.

    Pauses grow exponentially with full jitter (Brooker 2015), so that many workers do not come at once.

    Raises:
        Unreachable: nobody answered in time.
        PSError: the server refuses.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    hello = Hello((VERSION,), f"psworker/{protocol.__version__}")
    pause = _FIRST_PAUSE
    while True:
        try:
            return await greet(host, port, hello, traffic)
        except OSError as error:
            if loop.time() >= deadline:
                raise Unreachable(
                    f"no server answers ({error.strerror or error}); is psserver running there?",
                    field="server",
                    value=f"{host}:{port}",
                ) from error
            if pause == _FIRST_PAUSE:
                _log.info("no server at %s:%d yet (%s); trying for %g s", host, port, error, within)
        await asyncio.sleep(min(rng.uniform(0, pause), max(0.0, deadline - loop.time())))
        pause = min(pause * 2, _LONGEST_PAUSE)
