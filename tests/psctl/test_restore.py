import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadRequest, CheckpointUnusable, JobMismatch, PSError, Unreachable
from protocol.messages import Checkpointed, Restore
from protocol.status import ClusterStatus, DurabilityStatus
from psctl import cli, restore
from psctl.restore import wanted

MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]
Asked = list[tuple[str, int, Restore]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus) -> Asked:
    """Return what a coordinator is asked; it restores checkpoint 12, in which there is the job digits."""
    requests: Asked = []

    async def ask(
        host: str, port: int, request: Restore, *, within: float, **_: Any
    ) -> tuple[Any, tuple[()]]:
        requests.append((host, port, request))
        return Checkpointed(12, request.url, 3 << 20, 0.256), ()

    async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
        return replace(make_status(), durability=DurabilityStatus("log", "/run", 3))

    monkeypatch.setattr(restore, "ask", ask)
    monkeypatch.setattr(restore, "fetch_status", fetch_status)
    return requests


def test_it_says_what_the_cluster_has_become(asked: Asked, tmp_path: Path, capsys: Output) -> None:
    assert cli.main(["restore", str(tmp_path), "--server", "10.0.0.5:7171"]) == 0
    assert asked == [("10.0.0.5", 7171, Restore(str(tmp_path), None, False))]
    out, err = capsys.readouterr()
    assert out == (
        f"checkpoint 12 of {tmp_path} restored: 3.0 MiB in 0.26 s; timeline 3 begins\n"
        "  job digits: step 30, 1 tensor of 2.5 KiB\n"
    )
    assert err == ""


def test_json(asked: Asked, capsys: Output) -> None:
    assert (
        cli.main(["restore", "s3://bucket/run", "--checkpoint", "12", "--replace", "--format", "json"]) == 0
    )
    assert asked == [("127.0.0.1", 7070, Restore("s3://bucket/run", 12, True))]
    assert json.loads(capsys.readouterr().out) == {
        "checkpoint": 12,
        "place": "s3://bucket/run",
        "bytes": 3 << 20,
        "seconds": 0.256,
        "timeline": 3,
        "jobs": [{"name": "digits", "step": 30, "tensors": 1, "bytes": 2560}],
    }


@pytest.mark.parametrize(
    ("place", "checkpoint", "request_"),
    [
        ("/run", None, ("/run", None)),
        ("/run/", 7, ("/run", 7)),
        ("/run/checkpoint-00000012", None, ("/run", 12)),
        ("/run/checkpoint-00000012/", 12, ("/run", 12)),
        ("/checkpoint-00000012", None, ("/", 12)),
        ("/run/checkpoint-12", None, ("/run/checkpoint-12", None)),  # that is no checkpoint's name
        ("s3://b/run/checkpoint-00000012", None, ("s3://b/run", 12)),
        ("s3://b/run", None, ("s3://b/run", None)),
    ],
)
def test_what_an_operator_may_name(
    place: str, checkpoint: int | None, request_: tuple[str, int | None]
) -> None:
    assert wanted(place, checkpoint, replace=False) == Restore(*request_, False)


def test_a_directory_is_named_as_the_servers_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted("run", None, replace=True) == Restore(str(tmp_path / "run"), None, True)
    (tmp_path / "checkpoint-00000003").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint-00000003")
    assert wanted(".", None, replace=False) == Restore(str(tmp_path), 3, False)


def test_two_different_checkpoints(asked: Asked, capsys: Output) -> None:
    assert cli.main(["restore", "/run/checkpoint-00000012", "--checkpoint", "11"]) == 2
    assert "checkpoint=11: the directory is that of checkpoint 12" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "²"])
def test_no_number(number: str, asked: Asked, capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["restore", "/run", f"--checkpoint={number}"])
    assert ended.value.code == 2
    assert "write for example 12" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("no server answers"), 10),
        (JobMismatch("2 workers are at work", field="replace", value=False), 12),
        (CheckpointUnusable("its checksum is wrong", field="file", value="shard-0.json"), 13),
        (BadRequest("no such driver", field="url", value="foo://bar"), 2),
    ],
)
def test_what_may_go_wrong(
    error: PSError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    async def refuse(host: str, port: int, request: Restore, *, within: float, **_: Any) -> None:
        raise error

    monkeypatch.setattr(restore, "ask", refuse)
    assert cli.main(["restore", "/run"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"psctl restore: {error}\n")
