"""Two workers and four partitions; one dies, records come after a pause, one of them cannot be read."""

import asyncio
import signal
from pathlib import Path

import pytest

from protocol.addresses import split_address
from protocol.status import WorkerStatus
from psworker.asking import fetch_status
from psworker.sync import connect
from tests.integration.daemons import daemons
from tests.integration.test_streams import COUNTING
from tests.kafka import running_kafka

JOB = """
[job]
name = "count"
[model]
kind = "counting:Counting"
[data]
columns = ["x"]
target = "y"
on-error = "skip"
[train]
batch-size = 7
workers = 2
[stream]
source = "kafka://{address}/numbers"
fields = ["x", "y"]
max-wait = "5ms"
report-every = 100
"""

EACH = 1500


def lines(first: int, count: int) -> list[bytes]:
    return [b"%d,0" % number for number in range(first, first + count)]


def _workers(address: str) -> list[WorkerStatus]:
    """Return the one that was killed, and the other."""
    (job,) = asyncio.run(fetch_status(*split_address(address))).jobs
    return sorted(job.workers, key=lambda worker: worker.state != "dead")


@pytest.mark.long
def test_every_record_counts_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    job = tmp_path / "stream.toml"
    with running_kafka() as kafka, daemons() as start:
        for partition in range(4):
            kafka.write("numbers", partition, lines(partition * EACH, EACH))
        job.write_text(JOB.format(address=kafka.address))
        address = start.server("--heartbeat-interval", "100ms").addresses()["address"]
        first, second = (start.worker(address, "--job", str(job), cwd=tmp_path) for _ in range(2))
        first.wait_for("event=stream.report")  # it is in the midst of it
        first.process.send_signal(signal.SIGKILL)
        first.exit_code()

        def counted(rows: int) -> list[float]:
            while (sums := ps.pull(["rows", "sum", "squares"]))["rows"][0] < rows:
                assert second.process.poll() is None, second.log()
            return [value[0] for value in sums.values()]

        def expected(rows: int) -> list[float]:
            return [rows, sum(range(rows)), sum(n * n for n in range(rows))]

        with connect(address, "count", observe=True) as ps:
            assert counted(4 * EACH) == expected(4 * EACH)
            kafka.write("numbers", 3, [b"what", *lines(4 * EACH, 20)])
            assert counted(4 * EACH + 20) == expected(4 * EACH + 20)

        second.wait_for("partition 3, offset 1500: the row has 1 value")
        while not (workers := _workers(address))[1].skipped:
            assert second.process.poll() is None, second.log()
        second.process.send_signal(signal.SIGINT)
        assert second.exit_code() == 130
        assert "left out 1 rows: 1 of fields" in second.log()
        assert [worker.skipped for worker in workers] == [0, 1]
        assert workers[1].examples < 4 * EACH  # the other one has done some


@pytest.mark.long
@pytest.mark.parametrize("what", ["broker", "topic"])
def test_what_is_not_there_ends_a_worker_and_is_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    with running_kafka() as kafka, daemons() as start:
        (tmp_path / "stream.toml").write_text(JOB.format(address=kafka.address))
        if what == "broker":
            kafka.end()
        worker = start.worker("127.0.0.1:1", "--job", "stream.toml", "--reconnect-for", "1s", cwd=tmp_path)
        assert worker.exit_code() == 14, worker.log()
    remedy = "see that the brokers run" if what == "broker" else "the topic does not exist; create it"
    assert f"kafka://{kafka.address}/numbers: " in worker.log()
    assert remedy in worker.log()
    assert "Traceback" not in worker.log()
