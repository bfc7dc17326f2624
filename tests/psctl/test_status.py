import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.errors import Unreachable
from protocol.status import ClusterStatus, Wait
from psctl import cli, status

MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[ClusterStatus], list[tuple[str, int]]]:
    """Return what makes every cluster answer with a status; it returns the list of who was asked."""

    def install(found: ClusterStatus) -> list[tuple[str, int]]:
        asked: list[tuple[str, int]] = []

        async def fetch_status(host: str, port: int, *, within: float) -> ClusterStatus:
            asked.append((host, port))
            return found

        monkeypatch.setattr(status, "fetch_status", fetch_status)
        return asked

    return install


Answer = Callable[[ClusterStatus], list[tuple[str, int]]]


def test_a_person_sees_servers_jobs_workers_and_tensors(
    make_status: MakeStatus, answer: Answer, capsys: Output
) -> None:
    asked = answer(make_status(wait=Wait(30, ("worker-1",), 3.0)))
    assert cli.main(["status", "--server", "10.0.0.5:7171"]) == 0
    assert asked == [("10.0.0.5", 7171)]
    text = capsys.readouterr().out
    for fact in (
        "1 server, 1 job, up 1:15, asyncps 0.1.0",
        "127.0.0.1:7070", "ready", "2.5 KiB",
        "job digits", "staleness inf", "waiting for worker-1 (3.0 s)",
        "train: epoch 3/10, 24/80 chunks, 2 leased, 4,500 examples in 0:06, training loss 0.5000",
        "about 0:14 left",
        "held out, after epoch 2: loss 0.6000, accuracy 0.7500 (100 examples)",
        "worker-0", "training", "3,000", "0.2500", "0.5 s ago",
        "float32", "64 x 10", "sgd",
    ):  # fmt: skip
        assert fact in text


def test_the_step_of_a_synchronous_job_is_told(
    make_status: MakeStatus, answer: Answer, capsys: Output
) -> None:
    answer(make_status(staleness=0.0))
    assert cli.main(["status"]) == 0
    assert "staleness 0, membership epoch 1, step 30" in capsys.readouterr().out


def test_an_empty_cluster(make_status: MakeStatus, answer: Answer, capsys: Output) -> None:
    answer(replace(make_status(), jobs=()))
    assert cli.main(["status"]) == 0
    assert "1 server, 0 jobs" in capsys.readouterr().out


def test_texts_of_peers_are_escaped(make_status: MakeStatus, answer: Answer, capsys: Output) -> None:
    answer(make_status(names=("[bold]x", "\x1b[2J")))
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert "[bold]x" in text
    assert "\\x1b[2J" in text
    assert "\x1b" not in text


def test_json_is_the_whole_status(make_status: MakeStatus, answer: Answer, capsys: Output) -> None:
    answer(make_status())
    assert cli.main(["status", "--format", "json"]) == 0
    (job,) = (found := json.loads(capsys.readouterr().out))["jobs"]
    assert found["shards"] == [
        {"shard": 0, "address": "127.0.0.1:7070", "state": "ready", "parameters_bytes": 2560}
    ]
    assert job["staleness"] == "inf"
    assert job["progress"]["evaluations"][1]["means"][1] == {"name": "accuracy", "value": 0.75}
    assert [worker["name"] for worker in job["workers"]] == ["worker-0", "worker-1"]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    async def fetch_status(host: str, port: int, *, within: float) -> ClusterStatus:
        raise Unreachable("no server answers; start one", field="server", value=f"{host}:{port}")

    monkeypatch.setattr(status, "fetch_status", fetch_status)
    assert cli.main(["status", "--server", "127.0.0.1:7171"]) == 10
    assert "127.0.0.1:7171" in capsys.readouterr().err
