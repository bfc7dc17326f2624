import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import BadRequest, UnknownJob, Unreachable
from protocol.messages import Set
from protocol.status import ClusterStatus
from psctl import change, cli
from psctl.change import setting

MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus) -> list[tuple[str, int, Set]]:
    """Return what a cluster with the jobs digits and other is asked to change; it does so."""
    changes: list[tuple[str, int, Set]] = []

    async def ask_for(host: str, port: int, request: Set, *, within: float, **_: Any) -> None:
        changes.append((host, port, request))

    async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
        request = changes[-1][2]
        status = make_status(
            staleness=request.staleness,
            backup_workers=request.backup_workers or 0,
            rate=request.rate or 1.0,
        )
        jobs = (
            [status.jobs[0]] if request.job is None else [*status.jobs, replace(status.jobs[0], name="other")]
        )
        return replace(status, jobs=tuple(jobs))

    monkeypatch.setattr(change, "change", ask_for)
    monkeypatch.setattr(change, "fetch_status", fetch_status)
    return changes


Asked = list[tuple[str, int, Set]]


def test_the_only_job(asked: Asked, capsys: Output) -> None:
    assert cli.main(["set", "staleness=3"]) == 0
    assert asked == [("127.0.0.1", 7070, Set(None, 3.0, None))]
    assert capsys.readouterr().out == "job digits: stale by at most 3 steps (staleness 3)\n"


def test_several_settings_of_a_job_elsewhere(asked: Asked, capsys: Output) -> None:
    arguments = ["set", "staleness=0", "backup-workers=1", "--job", "other", "--server", "10.0.0.5:7171"]
    assert cli.main(arguments) == 0
    assert asked == [("10.0.0.5", 7171, Set("other", 0.0, 1))]
    assert capsys.readouterr().out == "job other: synchronous (staleness 0), 1 backup worker\n"


def test_the_server_may_come_from_the_environment(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSCTL_SERVER", "10.0.0.5:7171")
    assert cli.main(["set", "staleness=inf"]) == 0
    assert asked == [("10.0.0.5", 7171, Set(None, math.inf, None))]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("staleness=0", "staleness", 0), ("staleness=2147483647", "staleness", 2147483647),
        ("staleness=inf", "staleness", math.inf), ("backup-workers=0", "backup-workers", 0),
        ("backup-workers=12", "backup-workers", 12),
    ],
)  # fmt: skip
def test_a_setting(text: str, key: str, value: float) -> None:
    assert setting(text) == (key, value)


@pytest.mark.parametrize(
    ("text", "key", "answer"),
    [
        ("stalenes=3", "stalenes", 'did you mean "staleness"?'),
        ("backup_workers=3", "backup_workers", 'did you mean "backup-workers"?'),
        ("lr=3", "lr", "known: backup-workers, rate, staleness"),
        ("=3", '""', "known: "),
        ("staleness", "staleness", "expected 0 (synchronous)"),
        ("staleness=", "staleness", "expected 0 (synchronous)"),
        ("staleness=-1", '"-1"', "or inf (asynchronous)"),
        ("staleness=1.5", '"1.5"', "a whole number of steps"),
        ("staleness=2147483648", '"2147483648"', "a whole number of steps"),
        ("staleness=" + "9" * 5000, '"999', "a whole number of steps"),
        ("staleness=²", '"²"', "a whole number of steps"),
        ("staleness=nan", '"nan"', "a whole number of steps"),
        ("staleness=3=4", '"3=4"', "a whole number of steps"),
        ("backup-workers=inf", '"inf"', "a whole number of workers"),
        ("backup-workers=-1", '"-1"', "a whole number of workers"),
        ("\x1b[2J=1", "\\x1b[2J", "known: "),
    ],
)
def test_what_is_no_setting(text: str, key: str, answer: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        setting(text)
    assert key in str(refused.value)
    assert answer in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [["stalenes=3"], ["staleness=-1"], ["staleness=1", "lr=2"], ["staleness=1", "--job", "a/b"], []],
)
def test_wrong_usage_changes_nothing(arguments: list[str], asked: Asked, capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["set", *arguments])
    assert ended.value.code == 2
    assert (arguments or ["KEY=VALUE"])[-1].partition("=")[0] in capsys.readouterr().err
    assert asked == []


def test_a_setting_given_twice(asked: Asked, capsys: Output) -> None:
    assert cli.main(["set", "staleness=1", "staleness=2"]) == 2
    assert "staleness=1 and 2" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("no server answers"), 10),
        (UnknownJob("which of them?"), 12),
        (BadRequest("more backups than workers", field="backup_workers", value=9), 2),
    ],
)
def test_what_the_cluster_refuses(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    async def refuse(host: str, port: int, request: Set, *, within: float, **_: Any) -> None:
        raise error

    monkeypatch.setattr(change, "change", refuse)
    assert cli.main(["set", "backup-workers=9"]) == code
    assert capsys.readouterr().err == f"psctl set: {error}\n"


def test_the_rate(asked: Asked, capsys: Output, make_status: MakeStatus) -> None:
    assert cli.main(["set", "rate=0.5", "staleness=inf"]) == 0
    assert asked == [("127.0.0.1", 7070, Set(None, math.inf, None, 0.5))]
    assert capsys.readouterr().out == "job digits: asynchronous (staleness inf), learning rate x 0.5\n"


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "half", "", "1e999"])
def test_a_rate_is_a_finite_number_above_0(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="finite number above 0"):
        setting(f"rate={value}")
