"""Every exit code that exists so far, from real processes, and the message that goes with it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import daemons, read_ready_file
from tests.integration.points import write_points
from tests.ports import reserved_port

BACKGROUND = ("train.workers=2", "train.epochs=100000")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The server of all jobs that never begin, or that have names of their own."""
    with daemons() as start:
        yield start.server().addresses()["address"]


@pytest.fixture
def job(tmp_path: Path) -> str:
    """The path of a job that can be trained."""
    return str(write_points(tmp_path))


def set_flags(*settings: str) -> list[str]:
    return [flag for setting in settings for flag in ("--set", setting)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "x"], "is no port"),
        pytest.param(["--shards", "0"], "--shards 0", marks=pytest.mark.long),
        pytest.param(["--shard", "1"], "--join", marks=pytest.mark.long),
        (["--host", "0.0.0.0"], "--insecure"),
        pytest.param(["--max-frame", "1GB"], "64KiB", marks=pytest.mark.long),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_2_bad_server_flags(flags: list[str], says: str) -> None:
    with daemons() as start:
        server = start("psserver", *flags)
        assert server.exit_code() == 2
        assert says in server.log()


def test_2_a_port_that_is_taken() -> None:
    with daemons() as start:
        taken = start.server().addresses()["address"].rpartition(":")[2]
        second = start("psserver", "--port", taken, "--metrics-port", "0")
        assert second.exit_code() == 2
        assert f"--port {taken}" in second.log()


@pytest.mark.parametrize(
    ("name", "setting", "says"),
    [
        ("no-such-key", "train.epoch=3", '"epochs"'),
        ("no-such-model", "model.kind=sofmax", "softmax"),
        pytest.param("no-such-optimizer", "optimizer.name=sdg", "sdg", marks=pytest.mark.long),
        ("backwards", "optimizer.lr=-1", "lr"),
    ],
)
def test_2_bad_jobs(name: str, setting: str, says: str, address: str, job: str) -> None:
    with daemons() as start:
        worker = start.worker(address, "--job", job, *set_flags(f"job.name={name}", setting))
        assert worker.exit_code() == 2
        assert says in worker.log()


def test_10_no_server() -> None:
    with reserved_port() as port, daemons() as start:
        address = f"127.0.0.1:{port}"
        worker = start.worker(address, "--reconnect-for", "100ms", *set_flags("train.epochs=1"))
        server = start.server("--join", address, "--reconnect-for", "100ms")
        status = start("psctl", "status", "--server", address)
        assert [one.exit_code() for one in (worker, server, status)] == [10, 10, 10]
        for one in (worker, server, status):
            assert address in one.log()


def test_11_a_server_that_refuses_another_shard() -> None:
    with daemons() as start:
        address = start.server().addresses()["address"]
        second = start.server("--join", address)
        assert second.exit_code() == 11
        assert "--shards" in second.log()


def test_12_another_job_of_the_same_name(address: str, job: str) -> None:
    flags = ("--job", job, *set_flags("job.name=same", *BACKGROUND))
    with daemons() as start:
        first = start.worker(address, *flags)
        first.wait_for("ready")
        start.worker(address, *flags).wait_for("works on job")
        other = start.worker(address, *flags, *set_flags("train.batch-size=7"))
        assert other.exit_code() == 12
        assert "[train] batch-size is 7 in one and 20 in the other" in other.log()


def test_12_a_cluster_without_a_job() -> None:
    with daemons() as start:
        worker = start.worker(start.server().addresses()["address"])
        assert worker.exit_code() == 12
        assert "--job" in worker.log()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, ["train.csv", "o such file"]),
        pytest.param("", ["train.csv"], marks=pytest.mark.long),
        ("x,label\n1,2\n3,4\nfive,6\n", ["train.csv", "line 4", "five", "x"]),
        pytest.param("x,label\n1,2\n3\n", ["train.csv", "line 3"], marks=pytest.mark.long),
        pytest.param("x,y\n1,2\n", ["train.csv", "label"], marks=pytest.mark.long),
        ("x,label\n1,2\nnan,3\n", ["train.csv", "line 3", 'column "x"', "no value"]),
    ],
)
def test_14_data_that_cannot_be_read(
    content: str | None, says: list[str], address: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "train.csv").write_text(content)
    job = set_flags("job.name=unreadable", "model.kind=linear", "data.source=train.csv", "eval.holdout=0")
    with daemons() as start:
        worker = start.worker(address, *job, cwd=tmp_path)
        assert worker.exit_code() == 14
        for text in says:
            assert text in worker.log()


def test_15_a_server_that_is_gone(job: str) -> None:
    with daemons() as start:
        coordinator = start.server("--shards", "2")
        address = coordinator.addresses()["address"]
        shard = start.server("--join", address, "--reconnect-for", "500ms")
        shard.addresses()
        flags = ("--job", job, "--reconnect-for", "500ms", *set_flags(*BACKGROUND))
        workers = [start.worker(address, *flags) for _ in range(2)]
        for worker in workers:
            worker.wait_for("works on job")
        coordinator.process.kill()
        assert [one.exit_code() for one in (*workers, shard)] == [15, 15, 15]
        assert "unknown" in workers[0].log(), "it cannot tell what became of what was under way"


def test_16_a_job_that_diverges(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i}" for i in range(1000))
    (tmp_path / "train.csv").write_text(f"x,label\n{rows}\n")
    job = set_flags("job.name=wild", "model.kind=linear", "data.source=train.csv", "optimizer.lr=1e30")
    with daemons() as start:
        server = start.server()
        worker = start.worker(server.addresses()["address"], *job, cwd=tmp_path)
        assert worker.exit_code() == 16
        assert "NaN or infinity" in worker.log()
        server.process.terminate()
        assert "RuntimeWarning" not in server.log()  # refused, and not warned of as well


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_clean_stops(number: signal.Signals, code: int, job: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    with daemons() as start:
        server = start.server("--ready-file", str(ready))
        address = server.addresses()["address"]
        flags = ("--name", "only", "--job", job)
        worker = start.worker(address, *flags, *set_flags("train.workers=1", "train.epochs=100000"))
        worker.wait_for("works on job")
        content = read_ready_file(ready)
        assert content["address"] == address
        assert content["pid"] == server.process.pid

        worker.process.send_signal(number)
        assert worker.exit_code() == code
        server.wait_for("only left job points")

        # The lease came back: whoever comes next goes on with the job.
        waiting = start.worker(address, *flags, *set_flags("train.workers=2", "job.name=other"))
        waiting.wait_for("ready")
        waiting.process.send_signal(number)  # it waits for a second worker
        assert waiting.exit_code() == code
        server.process.send_signal(number)
        assert server.exit_code() == code
        assert "Traceback" not in server.log() + worker.log() + waiting.log()
