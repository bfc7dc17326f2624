import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from protocol.errors import NotFinite, UnknownTensor
from protocol.frames import VERSION
from protocol.messages import Set
from protocol.optimizers import Add
from psserver.metrics import Histogram, ServerMetrics
from psserver.server import Server
from psworker.asking import change
from psworker.client import connect
from tests.cluster import full, running_cluster, wire, workers
from tests.psserver.by_hand import worker_by_hand

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """What Prometheus would scrape: values by name and labels' values."""
    text = generate_latest(server.metrics.registry).decode()
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: dict[tuple[str, ...], float], name: str) -> Iterator[tuple[tuple[str, ...], float]]:
    return ((key[1:], value) for key, value in found.items() if key[0] == name)


async def test_requests_are_counted_by_operation_and_status() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        await ps.create("w", full(4, 0.0), Add())
        for _ in range(3):
            await ps.push({"w": full(4, 1.0)})
        for _ in range(2):
            await ps.pull("w")
        await ps.push_pull({"w": full(4, 1.0)})
        with pytest.raises(NotFinite):
            await ps.push({"w": full(4, np.inf)})
        with pytest.raises(UnknownTensor):
            await ps.pull("x")
        found = samples(cluster.servers[0])
        requests = dict(of(found, "psserver_requests_total"))
        assert requests["create", "ok"] == requests["init", "ok"] == requests["initialised", "ok"] == 1
        assert (requests["push", "ok"], requests["push", "not_finite"]) == (3, 1)
        assert requests["pull", "ok"] == 2
        assert requests["push_pull", "ok"] == 1
        assert requests["describe", "unknown_tensor"] == 1
        assert found["psserver_request_seconds_count", "push"] == 3
        assert found["psserver_request_seconds_bucket", "+Inf", "pull"] == 2


async def test_bytes_updates_and_gauges() -> None:
    size = 100_000
    async with running_cluster(2) as cluster, connect(cluster.address, job="demo") as ps:
        server, shard = cluster.servers
        await ps.create("w", full(size, 0.0), Add())
        before = samples(server)
        for _ in range(3):
            await ps.push({"w": full(size, 1.0)})
        await ps.pull("w")
        after = samples(server)
        half = 4 * size / 2
        received = after["psserver_received_bytes_total",] - before["psserver_received_bytes_total",]
        sent = after["psserver_sent_bytes_total",] - before["psserver_sent_bytes_total",]
        assert 3 * half <= received < 3 * half + 10_000
        assert half <= sent < half + 10_000
        assert after["psserver_updates_total", "demo"] == 3
        assert after["psserver_parameters_bytes", "demo"] == half
        assert samples(shard)["psserver_parameters_bytes", "demo"] == half
        assert after["psserver_workers", "training"] == 1
        assert after["psserver_connections",] == 2  # the worker, the other shard
        assert after["psserver_membership_epoch",] == 1
        assert "psserver_workers" not in {key[0] for key in samples(shard)}


async def test_steps_are_updates_and_their_waits_are_measured() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, staleness=0) as clients:
        await clients[0].create("w", full(4, 0.0), Add())
        for _ in range(3):
            await asyncio.gather(*(client.push_pull({"w": full(4, 1.0)}) for client in clients))
        found = samples(cluster.servers[0])
        assert found["psserver_updates_total", "default"] == 3
        assert found["psserver_barrier_wait_seconds_count",] == 6


async def test_staleness_is_told_in_updates_and_in_steps() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, staleness=3) as (a, b):
        await a.create("w", full(4, 0.0), Add())
        await a.pull("w")
        for _ in range(3):
            await b.push_pull({"w": full(4, 1.0)})  # 0, 0, 0 updates missed; 1, 2, 3 steps ahead
        await a.push({"w": full(4, 1.0)})  # 3 updates missed; it ends no step
        await cluster.status()  # looks where everybody is
        found = samples(cluster.servers[0])
        assert found["psserver_staleness_updates_sum",] == 3
        assert found["psserver_staleness_updates_bucket", "0.0"] == 3
        assert found["psserver_staleness_updates_bucket", "3.0"] == 4
        assert found["psserver_staleness_steps_sum",] == 6
        assert found["psserver_staleness_steps_bucket", "2.0"] == 2
        assert found["psserver_worker_lag_steps", "default", "0"] == 3
        assert found["psserver_worker_lag_steps", "default", "1"] == 0


async def test_retries_and_gradients_that_came_too_late_are_counted() -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address, name="a", staleness=0) as ps,
        worker_by_hand(cluster.address, "b") as late,
    ):
        await ps.create("w", full(4, 0.0), Add())
        await change(*cluster.endpoint, Set(backup_workers=1))
        for _ in range(2):
            await ps.push_pull({"w": full(4, 1.0)})
        for _ in range(3):
            await late.end(0, 1, late.joined.clock, w=full(4, 1.0))
        found = samples(cluster.servers[0])
        assert found["psserver_duplicate_pushes_total",] == 2
        assert found["psserver_dropped_gradients_total", "default"] == 1
        np.testing.assert_array_equal(await ps.pull("w"), full(4, 2.0))


async def test_no_label_takes_what_a_peer_makes_up() -> None:
    async with running_cluster() as cluster, wire(cluster.address) as stranger:
        await stranger.ask("hello", versions=[VERSION], client="test")
        for number in range(20):
            assert (await stranger.ask(f"made_up_{number}"))["field"] == "op"
        requests = dict(of(samples(cluster.servers[0]), "psserver_requests_total"))
        assert requests["other", "bad_request"] == 20
        assert {op for op, _ in requests} <= {"hello", "other", "status"}


async def test_jobs_above_a_hundred_share_a_label() -> None:
    async with running_cluster() as cluster:
        for number in range(103):
            async with connect(cluster.address, job=f"job{number}") as ps:
                await ps.create("w", full(4, 0.0), Add())
                await ps.push({"w": full(4, 1.0)})
        found = samples(cluster.servers[0])
        updates = dict(of(found, "psserver_updates_total"))
        assert len(updates) == 101
        assert updates["other",] == 3
        assert found["psserver_parameters_bytes", "other"] == 3 * 16
        assert found["psserver_workers", "left"] == 103


async def test_frames_that_make_no_sense_are_counted_by_reason() -> None:
    async with running_cluster() as cluster:
        reader, writer = await asyncio.open_connection(*cluster.endpoint)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""  # hung up on, without an answer
        writer.close()
        await writer.wait_closed()
        rejected = dict(of(samples(cluster.servers[0]), "psserver_rejected_frames_total"))
        assert rejected == {("bad_frame",): 1}


def test_buckets_are_cumulative_and_take_their_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == ([("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)], 14.0)


def test_two_servers_of_a_process_count_apart() -> None:
    one, other = ServerMetrics(dict), ServerMetrics(dict)
    one.request("pull", "ok", 0.1)
    assert (one.requests["pull", "ok"], other.requests["pull", "ok"]) == (1, 0)
