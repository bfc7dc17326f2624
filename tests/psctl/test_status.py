import json
from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import Unreachable
from protocol.status import ClusterStatus
from psctl import cli, status

MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[ClusterStatus], list[tuple[str, int]]]:
    """Return what makes every cluster answer with a status; it returns the list of who was asked."""

    def install(found: ClusterStatus) -> list[tuple[str, int]]:
        asked: list[tuple[str, int]] = []

        async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
            asked.append((host, port))
            return found

        monkeypatch.setattr(status, "fetch_status", fetch_status)
        return asked

    return install


Answer = Callable[[ClusterStatus], list[tuple[str, int]]]


def test_a_person_sees_servers_jobs_workers_and_tensors(
    make_status: MakeStatus, answer: Answer, capsys: Output
) -> None:
    asked = answer(make_status())
    assert cli.main(["status", "--server", "10.0.0.5:7171"]) == 0
    assert asked == [("10.0.0.5", 7171)]
    text = capsys.readouterr().out
    for fact in ("1 server, 1 job", "127.0.0.1:7070", "job digits", "worker-0", "0.2500", "64 x 10"):
        assert fact in text


def test_json_is_the_whole_status(make_status: MakeStatus, answer: Answer, capsys: Output) -> None:
    answer(make_status(backup_workers=1))
    assert cli.main(["status", "--format", "json"]) == 0
    (job,) = (found := json.loads(capsys.readouterr().out))["jobs"]
    assert found["shards"] == [
        {
            "shard": 0,
            "address": "127.0.0.1:7070",
            "state": "ready",
            "parameters_bytes": 2560,
            "heartbeat_age": 0.0,
            "problem": "",
            "load": {
                "bytes": 0,
                "rows": 0,
                "requests": 0,
                "keys": 0,
                "requests_per_second": 0.0,
                "keys_per_second": 0.0,
                "received_per_second": 0.0,
                "sent_per_second": 0.0,
            },
            "recent_requests": {"every": 0.0, "ago": 0.0, "values": []},
        }
    ]
    assert found["durability"] == {
        "mode": "none", "place": "", "timeline": 1, "checkpoint": None, "problem": "",
    }  # fmt: skip
    assert (job["staleness"], job["backup_workers"], job["waits"]) == ("inf", 1, [])
    assert job["progress"]["evaluations"][1]["means"][1] == {"name": "accuracy", "value": 0.75}
    assert [worker["name"] for worker in job["workers"]] == ["worker-0", "worker-1"]


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
        raise Unreachable("no server answers; start one", field="server", value=f"{host}:{port}")

    monkeypatch.setattr(status, "fetch_status", fetch_status)
    assert cli.main(["status", "--server", "127.0.0.1:7171"]) == 10
    assert "127.0.0.1:7171" in capsys.readouterr().err
