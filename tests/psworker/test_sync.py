import inspect
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from protocol.errors import (
    BadTensor,
    ConnectionLost,
    Fenced,
    JobMismatch,
    NotFinite,
    UnknownTensor,
    Unreachable,
)
from protocol.optimizers import SGD, Add
from psserver.membership import FailureSettings
from psworker import client
from psworker.rows import SparseGradient
from psworker.sync import SyncClient, SyncSparseTable, connect
from psworker.tables import SparseTable
from tests.cluster import Elsewhere, cluster_in_thread, full, holds, put_out

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with cluster_in_thread(shards=3, failure=FailureSettings(heartbeat=0.3)) as cluster:
        yield cluster


def test_the_example_of_the_documentation(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address, job="demo") as ps:
        ps.create("w", np.zeros((784, 100), np.float32), optimizer=SGD(lr=0.5))
        gradient = np.ones((784, 100), np.float32)
        ps.push({"w": gradient})
        new = ps.push_pull({"w": gradient})
        np.testing.assert_array_equal(new["w"], -gradient)
        np.testing.assert_array_equal(ps.pull("w"), -gradient)
        assert list(ps.pull(["w"])) == list(ps.tensors()) == ["w"]
        assert (ps.name, ps.staleness, ps.clock) == ("worker-0", float("inf"), 1)
        ps.step()
        assert ps.clock == 2
        with pytest.raises(ValueError, match="read-only"):
            new["w"][0] = 1


def test_rows_of_sparse_tables(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address, values="bfloat16") as ps:
        ps.create("w", [1.0], Add())
        emb, keys = ps.create_sparse("emb", 2, Add()), np.arange(100)
        emb.push(keys, np.ones((100, 2), np.float32))
        assert (emb.push_pull(keys, np.ones((100, 2), np.float32)) == 2.0).all()
        assert emb.push_pull([], np.ones((0, 2), np.float32), [[5, 200]]).tolist() == [
            [[2.0, 2.0], [0.0, 0.0]]
        ]
        gradient = SparseGradient([7], np.ones((1, 2), np.float32))
        both = ps.push_pull({"w": [1.0], "emb": gradient}, {"w": None, "emb": [7]})
        assert {name: value.tolist() for name, value in both.items()} == {"w": [2.0], "emb": [[3.0, 3.0]]}
        assert ps.pull({"emb": 7})["emb"].tolist() == ps.table("emb").pull(7).tolist() == [3.0, 3.0]
        ps.reset({"emb": None, "w": [5.0]})
        assert (emb.pull(keys) == 0.0).all()
        assert ps.pull("w").tolist() == [5.0]


def test_all_that_users_call_is_there() -> None:
    calls = ("create", "create_sparse", "table", "tensors", "pull", "push", "push_pull", "reset", "step")
    methods: list[tuple[Any, Any]] = [
        (getattr(client.Client, name), getattr(SyncClient, name)) for name in calls
    ]
    methods += [
        (getattr(SparseTable, name), getattr(SyncSparseTable, name)) for name in ("pull", "push", "push_pull")
    ]
    for theirs, ours in methods:
        parameters = [one for one in inspect.signature(theirs).parameters if one != "done"]  # of leases
        assert parameters == list(inspect.signature(ours).parameters)
        assert not inspect.iscoroutinefunction(ours)
    theirs, ours = inspect.signature(client.connect).parameters, inspect.signature(connect).parameters
    assert [*ours, "plan"] == list(theirs)
    assert all(parameter.default == theirs[name].default for name, parameter in ours.items())


def test_errors_come_out_and_the_connection_stays_usable(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address) as ps:
        ps.create("w", [1.0], Add())
        with pytest.raises(UnknownTensor):
            ps.pull("x")
        with pytest.raises(BadTensor):
            ps.push({"w": [1.0, 2.0]})
        with pytest.raises(NotFinite):
            ps.push_pull({"w": [float("nan")]})
        assert ps.pull("w").tolist() == [1.0]


def test_an_error_in_the_block_leaves_the_job(elsewhere: Elsewhere) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), connect(elsewhere.address):
        raise ZeroDivisionError
    assert [worker.state for worker in elsewhere.status().jobs[0].workers] == ["left"]
    assert threading.active_count() == before


def test_connect_raises_what_the_cluster_says(elsewhere: Elsewhere) -> None:
    before = threading.active_count()
    with (
        connect(elsewhere.address, staleness=0),
        pytest.raises(JobMismatch),
        connect(elsewhere.address, staleness=float("inf")),
    ):
        raise AssertionError("two kinds of one job")
    elsewhere.stop()
    with pytest.raises(Unreachable), connect(elsewhere.address, reconnect_for=0.0):
        raise AssertionError("there is no server")
    assert threading.active_count() < before


def test_several_threads_share_a_client(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address) as ps, ThreadPoolExecutor(8) as threads:

        def work(number: int) -> None:
            ps.create("w", full(200_000, 0.0), Add())
            for _ in range(5):
                ps.push({"w": full(200_000, 1.0)})
                values = ps.pull("w")
                assert values.shape == (200_000,)

        list(threads.map(work, range(8)))
        np.testing.assert_array_equal(ps.pull("w"), full(200_000, 40.0))


def test_synchronous_workers_in_threads(elsewhere: Elsewhere) -> None:
    def work(number: int) -> float:
        with connect(elsewhere.address, staleness=0, workers=3) as ps:
            ps.create("w", [0.0], SGD(1.0))
            for _ in range(10):
                new = ps.push_pull({"w": [float(number)]}, weight=1.0)
            return float(new["w"][0])

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, (1, 2, 3))) == pytest.approx([-20.0] * 3)


def test_after_the_block_nothing_can_be_asked(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address) as ps:
        ps.create("w", [1.0])
    with pytest.raises(ConnectionLost):
        ps.pull("w")


def test_a_server_that_goes_is_an_error_and_no_hang(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address, reconnect_for=0.1) as ps:
        ps.create("w", [1.0])
        elsewhere.stop()
        with pytest.raises(ConnectionLost):
            ps.pull("w")


@pytest.mark.parametrize("where", ["joining", "stepping"])
def test_an_interrupt_ends_a_wait_cleanly(elsewhere: Elsewhere, where: str) -> None:
    """Ctrl-C in a notebook while others are waited for."""

    def interrupt() -> None:
        steps = 0 if where == "joining" else 1
        elsewhere.until(
            lambda status: bool(status.jobs and status.jobs[0].workers and status.jobs[0].step >= steps)
        )
        os.kill(os.getpid(), signal.SIGINT)

    before = threading.active_count()
    interrupting = threading.Thread(target=interrupt)
    workers = 2 if where == "joining" else 1

    def step_for_ever() -> None:
        with connect(elsewhere.address, staleness=0, workers=workers) as ps:
            while True:
                ps.step()

    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        step_for_ever()
    interrupting.join()
    elsewhere.until(lambda status: status.jobs[0].workers[0].state == "left")
    assert threading.active_count() == before


def test_a_worker_that_is_out_is_refused_until_it_pulls(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address) as ps:
        ps.create("w", [0.0], Add())
        elsewhere.run(put_out(elsewhere.cluster, ps))
        elsewhere.run(holds(lambda: ps._client._fenced))  # a heartbeat has told it
        for attempt in (ps.step, lambda: ps.push({"w": [1.0]})):
            with pytest.raises(Fenced):
                attempt()
        assert ps.pull("w").tolist() == [0.0]
        ps.push({"w": [1.0]})
        assert ps.joined is not None
        assert ps.joined.incarnation == 2
        assert ps.pull("w").tolist() == [1.0]


def test_observing(elsewhere: Elsewhere) -> None:
    with connect(elsewhere.address) as ps, connect(elsewhere.address, observe=True) as observer:
        ps.create("w", [1.0])
        assert observer.name == ""
        assert observer.pull("w").tolist() == [1.0]
