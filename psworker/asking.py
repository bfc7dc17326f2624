"""Questions to a coordinator that need no place in a job."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final

import protocol
from protocol.addresses import join_address, split_address
from protocol.connection import Array, RefuseAll, Traffic
from protocol.credentials import Credentials
from protocol.documents import STATUS
from protocol.errors import Unreachable
from protocol.frames import VERSION
from protocol.messages import Attach, Attached, Drop, Dropped, Hello, Plan, Request, Set, Status
from protocol.status import ClusterStatus
from psworker.dialling import reach

__all__ = ["ask", "change", "drop", "fetch_plan", "fetch_status"]


_STATUS_WITHIN: Final = 10.0  # seconds; a coordinator answers this by itself and at once
_CHANGE_WITHIN: Final = 60.0  # seconds; all shards must have heard of it


async def ask(
    host: str,
    port: int,
    request: Request,
    *,
    within: float,
    answer_within: float = math.inf,
    credentials: Credentials | None = None,
) -> tuple[Any, Sequence[Array]]:
    """Ask a coordinator one thing, on a connection of its own.

    Args:
        host: where the coordinator is.
        port: where the coordinator is.
        request: what is asked.
        within: seconds to go on trying while nobody is there.
        answer_within: seconds for the reply, once somebody is.
        credentials: who asks; None: nobody wants to know.

    Raises:
        Unreachable: nobody was there, or did not reply, in time.
        PSError: the coordinator refuses.
    """
    hello = Hello((VERSION,), f"psworker/{protocol.__version__}")
    connection = await reach(
        host,
        port,
        hello=hello,
        within=within,
        traffic=Traffic(),
        handler=RefuseAll(),
        credentials=credentials,
    )
    try:
        async with asyncio.timeout(None if answer_within == math.inf else answer_within):
            return await connection.request(request)
    except TimeoutError:
        raise Unreachable(
            f"the server took the request {request.op} and has not answered within {answer_within:g} s",
            field="server",
            value=join_address(host, port),
        ) from None
    finally:
        connection.close()
        await connection.wait_closed()


async def fetch_plan(
    address: str, job: str | None, *, reconnect_for: float, credentials: Credentials | None = None
) -> Plan | None:
    """Return the plan of a job, or of the only one there is with ``job`` None.

    Raises:
        Unreachable: nobody answers for ``reconnect_for`` seconds.
        UnknownJob: there is no such job.
    """
    attached: Attached
    attached, _ = await ask(
        *split_address(address), Attach(job), within=reconnect_for, credentials=credentials
    )
    return attached.plan


async def fetch_status(
    host: str, port: int, *, within: float = 5.0, credentials: Credentials | None = None
) -> ClusterStatus:
    """Return the state of the cluster whose coordinator is at ``host``:``port``.

    Raises:
        Unreachable: nobody is there for ``within`` seconds, or whoever is hangs.
        PSError: the server is not a coordinator.
    """
    _, (payload,) = await ask(
        host, port, Status(), within=within, answer_within=_STATUS_WITHIN, credentials=credentials
    )
    return STATUS.decode(payload)


async def change(
    host: str, port: int, request: Set, *, within: float = 5.0, credentials: Credentials | None = None
) -> None:
    """Change how a job's workers are kept together.

    Raises:
        Unreachable: nobody is there for ``within`` seconds; or whoever is took the request and did not
            answer, and may or may not act on it.
        PSError: the coordinator refuses.
    """
    await ask(host, port, request, within=within, answer_within=_CHANGE_WITHIN, credentials=credentials)


async def drop(
    host: str,
    port: int,
    job: str,
    *,
    force: bool = False,
    within: float = 5.0,
    credentials: Credentials | None = None,
) -> Dropped:
    """Have a cluster end a job and forget all of it, and return what that has freed.

    Another job of that name may be begun at once; nothing that is still sent by workers of this one gets
    into it.

    Args:
        host: where the coordinator is.
        port: where the coordinator is.
        job: the job's name.
        force: even if workers are at work on it: they are told that it was dropped. An admin's token is
            needed for that, where there are tokens.
        within: seconds to go on trying while nobody is there.
        credentials: who asks; None: nobody wants to know.

    Raises:
        UnknownJob: there is no such job.
        JobMismatch: workers are at work on it, and it was not to be done by ``force``.
        Forbidden: ``force`` was said without an admin's token.
        Unreachable: nobody is there, or whoever is took the request and did not answer, and may or may not
            act on it.
        PSError: the coordinator refuses, or goes away.
    """
    dropped: Dropped
    dropped, _ = await ask(
        host, port, Drop(job, force), within=within, answer_within=_CHANGE_WITHIN, credentials=credentials
    )
    return dropped
