import json
from typing import Any

import pytest

from protocol.errors import BadRequest, CheckpointFailed, ConnectionLost, PSError, Unreachable
from protocol.messages import Checkpoint, Checkpointed
from psctl import checkpoint, cli

Output = pytest.CaptureFixture[str]
Asked = list[tuple[str, int, Checkpoint]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return what a coordinator is asked; it takes checkpoint 12."""
    requests: Asked = []

    async def ask(
        host: str, port: int, request: Checkpoint, *, within: float, **_: Any
    ) -> tuple[Any, tuple[()]]:
        requests.append((host, port, request))
        return Checkpointed(12, "s3://bucket/run/", 3 << 20, 0.256), ()

    monkeypatch.setattr(checkpoint, "ask", ask)
    return requests


def test_it_says_where_the_checkpoint_is(asked: Asked, capsys: Output) -> None:
    assert cli.main(["checkpoint", "--server", "10.0.0.5:7171"]) == 0
    assert asked == [("10.0.0.5", 7171, Checkpoint())]
    out, err = capsys.readouterr()
    assert out == "checkpoint 12: 3.0 MiB in 0.26 s\ns3://bucket/run/checkpoint-00000012\n"
    assert err == ""  # it is no terminal


def test_json(asked: Asked, capsys: Output) -> None:
    assert cli.main(["checkpoint", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "checkpoint": 12,
        "directory": "s3://bucket/run/checkpoint-00000012",
        "bytes": 3 << 20,
        "seconds": 0.256,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("no server answers"), 10),
        (BadRequest("the cluster keeps nothing"), 2),
        (CheckpointFailed("no marker of a", field="checkpoint", value=3), 17),
        (ConnectionLost("the connection ended"), 15),
    ],
)
def test_what_may_go_wrong(
    error: PSError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    async def refuse(host: str, port: int, request: Checkpoint, *, within: float, **_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "ask", refuse)
    assert cli.main(["checkpoint"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"psctl checkpoint: {error}\n")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    async def interrupted(host: str, port: int, request: Checkpoint, *, within: float, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "ask", interrupted)
    assert cli.main(["checkpoint"]) == 130
    assert capsys.readouterr().err == "psctl checkpoint: interrupted\n"
