"""Reach a server: addresses, the hello, and trying again while nobody answers."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Final

from protocol.backoff import Backoff
from protocol.connection import Connection, Handler, Traffic, dial
from protocol.credentials import Credentials
from protocol.errors import BadRequest, ConnectionLost, NotReady, ShuttingDown, Unreachable
from protocol.events import about
from protocol.greeting import say_hello
from protocol.messages import Hello, Welcome

__all__ = ["MAX_PAYLOAD", "greet", "reach"]

_log = logging.getLogger(__name__)

MAX_PAYLOAD: Final = 1 << 40
"""Largest reply accepted: replies are as large as what was asked for, which the client knows."""

_ANSWER_WITHIN: Final = 5.0  # seconds for the connection and the hello; a hung server takes connections too


async def greet(
    host: str,
    port: int,
    hello: Hello,
    traffic: Traffic,
    handler: Handler,
    values: str | None = None,
    credentials: Credentials | None = None,
) -> Connection:
    """Connect once and say hello; the connection's ``session`` is the server's ``Welcome``.

    ``values`` is the dtype in which rows are to travel; None: no other than their table's. ``credentials``
    are read again first, if they have changed.

    Raises:
        OSError: nobody answers.
        Unauthenticated: one of the two ends does not believe the other.
        BadRequest: the server takes no rows of that dtype.
        PSError: the server refuses.
    """
    credentials = credentials or Credentials()
    credentials.look()
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            connection = await dial(
                host, port, handler, max_payload=MAX_PAYLOAD, traffic=traffic, tls=credentials.dialling
            )
            try:
                welcome = await say_hello(connection, hello, credentials.token)
                _check_values(welcome, values)
                connection.session = welcome
            except BaseException:
                connection.abort()
                raise
    except TimeoutError:
        reason = f"no answer within {_ANSWER_WITHIN:g} s: is it psserver, and not its metrics port?"
        raise TimeoutError(errno.ETIMEDOUT, reason) from None
    return connection


def _check_values(welcome: Welcome, values: str | None) -> None:
    if values is not None and values not in welcome.values:
        raise BadRequest(
            f"{welcome.server} takes rows as {', '.join(welcome.values)}", field="values", value=values
        )


async def reach(
    host: str,
    port: int,
    *,
    hello: Hello,
    within: float,
    traffic: Traffic,
    handler: Handler,
    values: str | None = None,
    credentials: Credentials | None = None,
) -> Connection:
    """Connect to a server and say hello, trying again for ``within`` seconds while nobody answers.

    ``values`` and ``credentials`` are as for ``greet``.

    Raises:
        Unreachable: nobody answered in time.
        PSError: the server refuses.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    backoff = Backoff()
    warned = False
    while True:
        try:
            return await greet(host, port, hello, traffic, handler, values, credentials)
        except (OSError, ConnectionLost, ShuttingDown, NotReady) as error:
            reason = getattr(error, "strerror", None) or error
            if loop.time() >= deadline:
                raise Unreachable(
                    f"no server answers ({reason}); is psserver running there?",
                    field="server",
                    value=f"{host}:{port}",
                ) from error
            if not warned:
                _log.warning(
                    "no server at %s:%d yet (%s); trying for %g s", host, port, reason, within,
                    extra=about("server.unreachable"),
                )  # fmt: skip
                warned = True
        await asyncio.sleep(backoff.pause(deadline - loop.time()))
