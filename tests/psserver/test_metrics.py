import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import protocol
from protocol.errors import NotFinite, UnknownTensor
from protocol.frames import VERSION
from protocol.messages import Set
from protocol.optimizers import Add
from protocol.status import ClusterStatus
from psctl.checkpoint import take_checkpoint
from psserver import gauges
from psserver.jobs import JobStore
from psserver.metrics import Histogram, ServerMetrics
from psserver.server import Server
from psworker.asking import change
from psworker.client import connect
from tests.cluster import (
    EAGER,
    Cluster,
    DurableCluster,
    durable_cluster,
    full,
    running_cluster,
    wire,
    workers,
)
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


async def test_the_coordinator_tells_who_is_there_in_every_state() -> None:
    async with running_cluster(3, started=2) as cluster:
        coordinator, shard = (samples(server) for server in cluster.servers)
        assert dict(of(coordinator, "psserver_shards")) == {
            ("joining",): 1, ("ready",): 2, ("suspect",): 0, ("lost",): 0
        }  # fmt: skip
        assert set(dict(of(coordinator, "psserver_workers"))) == {
            ("waiting",), ("training",), ("suspect",), ("left",), ("dead",)
        }  # fmt: skip
        assert not {"psserver_shards", "psserver_workers"} & {key[0] for key in shard}


class Dropping(dict[str, JobStore]):
    """Jobs each of which is dropped as soon as somebody has looked whether it is there."""

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        self.clear()
        return found


async def test_a_job_may_be_dropped_while_metrics_are_read() -> None:
    async with running_cluster() as cluster, connect(cluster.address):
        server = cluster.servers[0]
        assert server._coordinator is not None
        found = gauges.of_coordinator(server._coordinator, Dropping(server._shard.jobs))
        assert found["psserver_workers", (("state", "training"),)] == 1


async def test_workers_that_were_declared_dead_are_counted_and_those_that_left_are_not() -> None:
    async with running_cluster(failure=EAGER) as cluster, connect(cluster.address, name="a") as ps:
        await ps.create("w", full(4, 0.0), Add())
        assert samples(cluster.servers[0])["psserver_worker_deaths_total", "default"] == 0
        async with connect(cluster.address, name="b"):
            pass
        for count in (1, 2):
            async with worker_by_hand(cluster.address, "c"):
                pass
            await cluster.until(lambda status: state_of(status, "c") == "dead")
            found = samples(cluster.servers[0])
            assert found["psserver_worker_deaths_total", "default"] == count
        assert found["psserver_workers", "left"] == found["psserver_workers", "dead"] == 1


def state_of(status: ClusterStatus, worker: str) -> str:
    (found,) = [one.state for job in status.jobs for one in job.workers if one.name == worker]
    return found


async def test_who_comes_in_the_place_of_another_counts_as_its_death() -> None:
    async with running_cluster() as cluster:
        async with worker_by_hand(cluster.address, "a"):
            pass
        async with connect(cluster.address, name="a") as ps:
            await ps.create("w", full(4, 0.0), Add())
            assert samples(cluster.servers[0])["psserver_worker_deaths_total", "default"] == 1


async def test_a_wait_that_lasts_is_told_while_it_does() -> None:
    async with (
        running_cluster() as cluster,
        workers(cluster.address, 2, staleness=0) as (a, b),
        connect(cluster.address, job="other") as other,
    ):
        await other.create("w", full(4, 0.0), Add())
        await a.create("w", full(4, 0.0), Add())
        waiting = asyncio.create_task(a.push_pull({"w": full(4, 1.0)}))
        await until(lambda: longest_wait(cluster) > 0)
        assert samples(cluster.servers[0])["psserver_barrier_waiting_seconds", "other"] == 0
        await b.push_pull({"w": full(4, 1.0)})
        await waiting
        await until(lambda: longest_wait(cluster) == 0)


def longest_wait(cluster: Cluster) -> float:
    return samples(cluster.servers[0])["psserver_barrier_waiting_seconds", "default"]


async def until(condition: Callable[[], bool]) -> None:
    """Look, again and again, until the condition holds."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


async def test_what_is_not_finite_is_counted_whatever_asked() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        assert samples(cluster.servers[0])["psserver_not_finite_total",] == 0
        await ps.create("w", full(4, 0.0), Add())
        for push in (ps.push, ps.push_pull):
            with pytest.raises(NotFinite):
                await push({"w": full(4, np.nan)})
        assert samples(cluster.servers[0])["psserver_not_finite_total",] == 2


async def test_the_versions_are_told() -> None:
    async with running_cluster() as cluster:
        found = dict(of(samples(cluster.servers[0]), "psserver_build_info"))
        assert found == {(str(VERSION), protocol.__version__): 1}


# --- checkpoints


async def test_what_no_checkpoint_has_is_told_until_one_has_it(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 1, every=600.0) as cluster:
        await unsaved(cluster, is_so=False)  # there is nothing yet
        async with connect(cluster.address) as ps:
            await ps.create("w", full(4, 0.0), Add())
            await unsaved(cluster, is_so=True)
            await take_checkpoint(*cluster.endpoint)
            await unsaved(cluster, is_so=False)
            await ps.push({"w": full(4, 1.0)})
            await unsaved(cluster, is_so=True)
        found = samples(cluster[0])
        assert found["psserver_checkpoint_every_seconds",] == 600
        assert found["psserver_checkpoint_seconds_count",] == 1
        assert found["psserver_checkpoint_last_success_timestamp_seconds",] > 1e9


async def unsaved(cluster: DurableCluster, *, is_so: bool) -> None:
    """Return when the coordinator has looked, and found that."""
    lead = cluster[0]._lead
    assert lead is not None

    def found() -> bool:
        lead.checkpoints.look()
        return (samples(cluster[0])["psserver_checkpoint_unsaved_seconds",] > 0) is is_so

    await until(found)


async def test_the_room_on_the_disk_is_told_by_every_server_that_has_one(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster:
        for server in (cluster[0], cluster[1]):
            found = samples(server)
            free, total = found["psserver_disk_free_bytes",], found["psserver_disk_total_bytes",]
            assert 0 <= free <= total
            assert total == pytest.approx(shutil.disk_usage(tmp_path).total, rel=0.1)
        names = {key[0] for key in samples(cluster[1])}
        assert not {name for name in names if name.startswith("psserver_checkpoint_every")}
    async with running_cluster() as cluster_without:
        names = {key[0] for key in samples(cluster_without.servers[0])}
        assert not {name for name in names if name.startswith(("psserver_disk", "psserver_checkpoint_every"))}


async def test_no_room_is_told_of_a_directory_that_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    async with durable_cluster(directory, 1) as cluster:
        assert ("psserver_disk_free_bytes",) in samples(cluster[0])
        directory.rename(tmp_path / "elsewhere")
        try:
            assert ("psserver_disk_free_bytes",) not in samples(cluster[0])
        finally:
            (tmp_path / "elsewhere").rename(directory)


# --- labels


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
