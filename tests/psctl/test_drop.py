import json
from typing import Any

import pytest

from protocol.errors import Forbidden, JobMismatch, PSError, UnknownJob, Unreachable
from protocol.messages import Dropped
from psctl import cli, drop

Output = pytest.CaptureFixture[str]
Asked = list[tuple[str, int, str, bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return what a coordinator is asked to drop; server 1 is away."""
    requests: Asked = []

    async def dropped(host: str, port: int, job: str, *, force: bool, **_: Any) -> Dropped:
        requests.append((host, port, job, force))
        return Dropped(job, 3, 5 << 20, (1,))

    monkeypatch.setattr(drop, "drop", dropped)
    return requests


def test_it_says_what_it_has_freed(asked: Asked, capsys: Output) -> None:
    assert cli.main(["drop", "digits", "--server", "10.0.0.5:7171"]) == 0
    assert asked == [("10.0.0.5", 7171, "digits", False)]
    assert capsys.readouterr().out == (
        "job digits dropped: 3 tensors, 5.0 MiB of memory freed\n"
        "  server 1 is away: it drops its part as soon as it is back\n"
    )


def test_json(asked: Asked, capsys: Output) -> None:
    assert cli.main(["drop", "digits", "--force", "--format", "json"]) == 0
    assert asked == [("127.0.0.1", 7070, "digits", True)]
    assert json.loads(capsys.readouterr().out) == {
        "job": "digits",
        "tensor_count": 3,
        "bytes": 5 << 20,
        "away": [1],
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("no server answers"), 10),
        (Forbidden("this takes the token of an admin"), 11),
        (JobMismatch("workers are at work on it"), 12),
        (UnknownJob("no worker has made a job of that name"), 12),
    ],
)
def test_what_may_go_wrong(
    error: PSError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(drop, "drop", refuse)
    assert cli.main(["drop", "digits"]) == code
    assert capsys.readouterr().err == f"psctl drop: {error}\n"


def test_a_job_has_to_be_named(capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["drop"])
    assert caught.value.code == 2
    assert "JOB" in capsys.readouterr().err
