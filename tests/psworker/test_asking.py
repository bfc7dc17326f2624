"""The questions, asked of a coordinator that answers from a script, and of real ones."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import pytest

from protocol.addresses import split_address
from protocol.documents import STATUS
from protocol.errors import BadRequest, ConnectionLost, UnknownJob, Unreachable
from protocol.frames import PRELUDE, VERSION, encode_prelude
from protocol.messages import (
    Attached,
    Empty,
    Plan,
    Reply,
    Set,
    StatusReport,
    Welcome,
    encode_error,
    encode_reply,
)
from protocol.optimizers import Add
from protocol.status import ClusterStatus, ShardStatus
from protocol.tensors import Part
from psworker import asking
from psworker.asking import change, fetch_plan, fetch_status
from psworker.client import connect
from tests.cluster import Cluster, running_cluster, workers

Answer = tuple[Reply, bytes] | Exception | None
Asked = list[dict[str, Any]]

WELCOME = Welcome(VERSION, "test", 0, 1, 1 << 20)
PLAN = Plan("text", 8, 3, 1, 7)
STATE = ClusterStatus("1.2.3", 5.0, (ShardStatus(0, "127.0.0.1:7070", "ready", 12, 0.0),), ())


@asynccontextmanager
async def coordinator(answer: Answer) -> AsyncIterator[tuple[int, Asked]]:
    """Welcome whoever comes and give one ``answer`` to each request; None: never.

    Yields the port, and what is asked.
    """
    asked: Asked = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                fields = await _request(reader)
                if fields["op"] == "hello":
                    _send(writer, encode_reply(fields["id"], WELCOME))
                    continue
                asked.append(fields)
                match answer:
                    case None:
                        continue
                    case ConnectionLost():
                        writer.close()
                    case Exception():
                        _send(writer, encode_error(fields["id"], answer))  # type: ignore[arg-type]
                    case (reply, payload):
                        _send(writer, encode_reply(fields["id"], reply), payload)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> dict[str, Any]:
    *_, header, payload = PRELUDE.unpack(await reader.readexactly(PRELUDE.size))
    fields: dict[str, Any] = msgpack.unpackb(await reader.readexactly(header))
    await reader.readexactly(payload)
    return fields


def _send(writer: asyncio.StreamWriter, header: bytes, payload: bytes = b"") -> None:
    writer.write(encode_prelude(len(header), len(payload)) + header + payload)


def report(state: ClusterStatus) -> tuple[Reply, bytes]:
    payload: np.ndarray[Any, Any] = STATUS.encode(state)
    return StatusReport((Part("status", "uint8", payload.size),)), payload.tobytes()


async def test_the_status() -> None:
    async with coordinator(report(STATE)) as (port, asked):
        assert await fetch_status("127.0.0.1", port) == STATE
    assert [fields["op"] for fields in asked] == ["status"]


@pytest.mark.parametrize("plan", [PLAN, None])
async def test_the_plan_of_a_job(plan: Plan | None) -> None:
    async with coordinator((Attached("digits", ("",), math.inf, plan), b"")) as (port, asked):
        assert await fetch_plan(f"127.0.0.1:{port}", "digits", reconnect_for=0.0) == plan
    assert [(fields["op"], fields["job"]) for fields in asked] == [("attach", "digits")]


async def test_a_change() -> None:
    async with coordinator((Empty(), b"")) as (port, asked):
        await change("127.0.0.1", port, Set("digits", 3.0, 1))
    (fields,) = asked
    assert (fields["op"], fields["job"], fields["staleness"], fields["backup_workers"]) == (
        "set",
        "digits",
        3.0,
        1,
    )


Question = Callable[[int], Any]
QUESTIONS: list[Question] = [
    lambda port: fetch_status("127.0.0.1", port, within=0.0),
    lambda port: fetch_plan(f"127.0.0.1:{port}", None, reconnect_for=0.0),
    lambda port: change("127.0.0.1", port, Set(None, 0.0, None), within=0.0),
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "error",
    [UnknownJob("which?", field="job"), BadRequest("no", field="staleness", value=-1), ConnectionLost("")],
)
async def test_what_the_coordinator_refuses_is_raised(error: Exception, question: Question) -> None:
    async with coordinator(error) as (port, _):
        with pytest.raises(type(error)):
            await question(port)


@pytest.mark.parametrize("question", [QUESTIONS[0], QUESTIONS[2]])
async def test_a_coordinator_that_hangs_is_given_up(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_STATUS_WITHIN", 0.01)
    monkeypatch.setattr(asking, "_CHANGE_WITHIN", 0.01)
    async with coordinator(None) as (port, _):
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}.*has not answered"):
            await question(port)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_nobody_is_there(question: Question) -> None:
    async with coordinator(None) as (port, _):
        pass
    with pytest.raises(Unreachable, match="no server answers"):
        await question(port)


# --- of real clusters


async def shard_of(cluster: Cluster, number: int) -> tuple[str, int]:
    (address,) = [shard.address for shard in (await cluster.status()).shards if shard.shard == number]
    return split_address(address)


async def test_the_status_of_an_empty_cluster() -> None:
    async with running_cluster(3) as cluster:
        status = await fetch_status(*cluster.endpoint)
        assert status.jobs == ()
        assert [(shard.shard, shard.state) for shard in status.shards] == [
            (0, "ready"),
            (1, "ready"),
            (2, "ready"),
        ]


async def test_the_status_tells_of_jobs_and_workers() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=3, plan=PLAN):
        (job,) = (await fetch_status(*cluster.endpoint)).jobs
        assert (job.name, job.staleness, job.backup_workers) == ("default", 3, 0)
        assert {(worker.name, worker.incarnation, worker.state) for worker in job.workers} == {
            ("w0", 1, "training"),
            ("w1", 1, "training"),
        }
        assert job.progress is not None
        assert (job.progress.chunks, job.progress.epochs) == (24, 3)


async def test_only_the_coordinator_can_be_asked() -> None:
    async with running_cluster(2) as cluster:
        shard = await shard_of(cluster, 1)
        for asked in (fetch_status(*shard), change(*shard, Set())):
            with pytest.raises(BadRequest, match="coordinator"):
                await asked


async def test_the_plan_of_a_job_of_a_cluster() -> None:
    async with running_cluster() as cluster:
        for job in (None, "default"):
            with pytest.raises(UnknownJob):
                await fetch_plan(cluster.address, job, reconnect_for=0.0)
        async with connect(cluster.address, job="mine", plan=PLAN):
            assert await fetch_plan(cluster.address, None, reconnect_for=0.0) == PLAN
            assert await fetch_plan(cluster.address, "mine", reconnect_for=0.0) == PLAN
            async with connect(cluster.address, job="other"):
                assert await fetch_plan(cluster.address, "other", reconnect_for=0.0) is None
                with pytest.raises(UnknownJob, match="name the job"):
                    await fetch_plan(cluster.address, None, reconnect_for=0.0)


async def test_a_change_holds_when_it_is_answered() -> None:
    async with running_cluster(3) as cluster, workers(cluster.address, 2) as (a, _):
        await a.create("w", [0.0], Add())
        for staleness in (0.0, 2.0, math.inf):
            await change(*cluster.endpoint, Set("default", staleness))
            job = await cluster.job()
            assert (job.staleness, job.backup_workers) == (staleness, 0)
        await change(*cluster.endpoint, Set(None, None, 1))  # the only job; its staleness stays
        job = await cluster.job()
        assert (job.staleness, job.backup_workers) == (math.inf, 1)
        async with connect(cluster.address, observe=True) as observer:
            assert observer.staleness == math.inf


@pytest.mark.parametrize(
    ("request_", "field"),
    [(Set("default", -1.0), "staleness"), (Set("default", 0.5), "staleness"), (Set("other", 0.0), "job")],
)
async def test_a_change_that_makes_no_sense_changes_nothing(request_: Set, field: str) -> None:
    async with running_cluster() as cluster, connect(cluster.address, staleness=2):
        with pytest.raises((BadRequest, UnknownJob)) as caught:
            await change(*cluster.endpoint, request_)
        assert caught.value.field == field
        assert (await cluster.job()).staleness == 2


async def test_a_change_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_CHANGE_WITHIN", 0.05)
    async with running_cluster(shards=2, started=1) as cluster:  # it waits for the second
        with pytest.raises(Unreachable, match="set"):
            await change(*cluster.endpoint, Set())


async def test_nothing_stays_open() -> None:
    async with running_cluster() as cluster:
        for _ in range(3):
            await fetch_status(*cluster.endpoint)
            with pytest.raises(UnknownJob):
                await fetch_plan(cluster.address, None, reconnect_for=0.0)
        # The status is asked for on a connection of its own.
        await cluster.until(lambda _: len(cluster.servers[0]._connections) <= 1)
