"""A worker that is killed in the midst of a stream: the one after it learns from the rest, once."""

import asyncio
import signal
from pathlib import Path

import pytest

from protocol.addresses import split_address
from psctl import cli
from psworker.asking import fetch_status
from psworker.sync import connect
from tests.integration.daemons import daemons

COUNTING = """
import numpy as np
from psworker import Add

class Counting:
    optimizer = Add()

    def __init__(self, features):
        pass

    def parameters(self):
        return {"rows": np.zeros(1), "sum": np.zeros(1), "squares": np.zeros(1)}

    def gradients(self, parameters, batch):
        x = batch.x[:, 0].astype(np.float64)
        sums = {"rows": np.full(1, float(len(x))), "sum": x.sum(keepdims=True)}
        return {**sums, "squares": (x * x).sum(keepdims=True)}, 0.0

    def predict(self, parameters, batch):
        return batch.x[:, 0] * 2
"""

JOB = """
[job]
name = "count"
[model]
kind = "counting:Counting"
[data]
columns = ["x"]
target = "y"
[train]
batch-size = 7
[stream]
source = "tail:{path}"
max-wait = "5ms"
report-every = 100
"""

LINES = 3000


def test_every_line_counts_once_though_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream, job = tmp_path / "stream.csv", tmp_path / "stream.toml"
    stream.write_text("x,y\n" + "".join(f"{number},0\n" for number in range(LINES // 2)))
    job.write_text(JOB.format(path=stream))
    (tmp_path / "counting.py").write_text(COUNTING)
    with daemons() as start:
        address = start.server("--heartbeat-interval", "100ms").addresses()["address"]
        first = start.worker(address, "--job", str(job), cwd=tmp_path)
        first.wait_for("event=stream.report")  # it is in the midst of it
        first.process.send_signal(signal.SIGKILL)
        first.exit_code()
        stream.rename(tmp_path / "stream.csv.1")  # while nobody reads
        stream.write_text("x,y\n" + "".join(f"{number},0\n" for number in range(LINES // 2, LINES)))
        second = start.worker(address, "--job", str(job), cwd=tmp_path)
        second.wait_for("event=work.begins")
        with connect(address, "count", observe=True) as ps:
            while (counted := ps.pull(["rows", "sum", "squares"]))["rows"][0] < LINES:
                assert second.process.poll() is None, second.log()
        numbers = range(LINES)
        assert [value[0] for value in counted.values()] == [LINES, sum(numbers), sum(n * n for n in numbers)]

        (status,) = asyncio.run(fetch_status(*split_address(address))).jobs
        assert status.workers[-1].examples < LINES  # the first one had done some

        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "new.csv").write_text("x\n3\n4\n")
        assert cli.main(["predict", "--server", address, "--job", str(job), "--input", "new.csv"]) == 0
        assert capfd.readouterr().out == "6.0\n8.0\n"
        assert cli.main(["predict", "--server", address, "--input", "new.csv"]) == 2
        assert "counting:Counting" in capfd.readouterr().err

        second.process.send_signal(signal.SIGINT)
        assert second.exit_code() == 130
        assert "Traceback" not in second.log()
