import asyncio
import multiprocessing
import os
import sys

import pytest

from benchmarks.bystander import BystanderFailed, Latencies, bystander, summarize_latencies
from benchmarks.crowd import CrowdFailed, SimulatedWorker, living_crowd
from benchmarks.heartbeats import Round, as_json, measure, render_text
from protocol.addresses import split_address
from protocol.status import ClusterStatus
from psctl import LocalCluster
from psworker.asking import fetch_status
from tests.benchmarks.processes import all_ended, spawned_by


def latencies(p99: float) -> Latencies:
    return Latencies(pulls=1000, median=100e-6, p99=p99, p999=2 * p99, longest=0.01)


def rounds() -> list[Round]:
    return [
        Round(0.1, 0.08, latencies(200e-6), latencies(300e-6)),
        Round(0.2, 0.12, latencies(200e-6), latencies(200e-6)),
        Round(0.3, 0.10, latencies(200e-6), latencies(800e-6)),
    ]


def ignore(line: str) -> None:
    """Show nothing."""


def last_heard(status: ClusterStatus) -> list[float]:
    """When each worker's last heartbeat came, in the time that the server has been up."""
    return [status.uptime - worker.heartbeat_age for worker in status.jobs[0].workers]


# --- simulated workers


def test_simulated_workers_are_members_that_live() -> None:
    """The server goes on hearing of each after all have joined."""
    with LocalCluster() as cluster:
        address = split_address(cluster.address)
        with living_crowd(address, total=7, interval=0.05, processes=2) as crowd:
            assert crowd.joined_in > 0
            joined = asyncio.run(fetch_status(*address))
            status = joined
            while not all(heard > joined.uptime for heard in last_heard(status)):
                status = asyncio.run(fetch_status(*address))
            crowd.check()
            processes = spawned_by(os.getpid())
        (job,) = status.jobs
        assert job.name == "crowd"
        assert len({worker.name for worker in job.workers}) == len(job.workers) == 7
        assert {worker.state for worker in job.workers} <= {"training", "suspect"}  # on a busy machine
        assert len(processes) == 2
        assert all_ended(processes)


def test_a_crowd_that_is_turned_away_is_an_error() -> None:
    command = (sys.executable, "-m", "psserver", "--max-connections", "3")
    with LocalCluster(server_command=command) as cluster:
        living = living_crowd(split_address(cluster.address), total=5, interval=1.0, processes=1)
        with pytest.raises(CrowdFailed), living:
            pass


def test_a_refusal_of_any_is_the_failure_of_all() -> None:
    async def refused() -> None:
        failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with LocalCluster() as cluster:
            loop = asyncio.get_running_loop()
            _, worker = await loop.create_connection(
                lambda: SimulatedWorker("early", 1, failure), *split_address(cluster.address)
            )
            worker.join()  # without a hello
            await failure

    with pytest.raises(CrowdFailed, match=r"early: .*hello"):
        asyncio.run(refused())


# --- the bystander


def test_percentiles_of_pulls() -> None:
    found = summarize_latencies([number / 1000 for number in range(1001)])
    assert (found.pulls, found.median, found.longest) == (1001, 0.5, 1.0)
    assert (found.p99, found.p999) == pytest.approx((0.99, 0.999))
    with pytest.raises(ValueError, match="seconds"):
        summarize_latencies([])


def test_bystander_pulls_when_told() -> None:
    with LocalCluster() as cluster, bystander(cluster.address) as pull_for:
        found = pull_for(0.05)
        assert found.pulls > 0
        assert 0 < found.median <= found.p99 <= found.p999 <= found.longest
        assert pull_for(0.05).pulls > 0


def test_bystander_that_is_gone_is_an_error() -> None:
    with LocalCluster() as cluster, bystander(cluster.address) as pull_for:
        pull_for(0.01)
        (child,) = multiprocessing.active_children()
        child.kill()
        with pytest.raises(BystanderFailed, match="ended"):
            pull_for(0.01)


# --- the report


def test_a_round_compares_the_99th_percentiles() -> None:
    assert rounds()[0].slower == pytest.approx(1.5)


def test_text_has_targets_beside_medians() -> None:
    cpu, p99, joins = render_text(1000, rounds()).splitlines()[1:4]
    assert cpu.split()[-6:] == ["<", "0.25", "0.100", "0.080", "-", "0.120"]
    assert p99.split()[-6:] == ["<", "2", "1.50", "1.00", "-", "4.00"]
    assert joins.split()[-4:] == ["0.20", "0.10", "-", "0.30"]


def test_json_has_every_round() -> None:
    report = as_json(1000, rounds())
    assert (report["workers"], report["cores"], report["p99_to_alone"]) == (1000, 0.10, pytest.approx(1.5))
    assert [one["joined_in"] for one in report["rounds"]] == [0.1, 0.2, 0.3]
    assert report["rounds"][0]["alone"]["p99"] == 200e-6


def test_a_round_is_measured_with_real_processes() -> None:
    (found,) = measure(workers=5, repeat=1, seconds=0.2, progress=ignore)
    assert found.joined_in > 0
    assert found.cores >= 0
    assert found.alone.pulls > 0
    assert found.beside.pulls > 0
