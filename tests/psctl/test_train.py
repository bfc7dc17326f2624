import argparse
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CheckpointFailed, Unreachable
from protocol.status import ClusterStatus
from psctl import LocalCluster, ProcessFailed, cli, train
from psctl.checkpoint import Taken
from psctl.screen import Screen
from psworker.job import load_job

MakeCluster = Callable[..., LocalCluster]
MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]
JOB = load_job(None, ())
BLIND = Screen(lambda status: None, lambda text: None)


async def save(host: str, port: int, **_: Any) -> Taken:
    """Take a made-up checkpoint."""
    return Taken(4, "/run/checkpoint-00000004", 100, 0.1)


@pytest.fixture
def trained(
    monkeypatch: pytest.MonkeyPatch, fake_cluster: MakeCluster, make_status: MakeStatus
) -> Callable[..., argparse.Namespace]:
    """Return what makes ``psctl train`` start fake daemons; it returns the flags that it then sees."""

    def install(**daemons: str) -> argparse.Namespace:
        seen = argparse.Namespace()

        def cluster_from(options: argparse.Namespace, workers: int) -> LocalCluster:
            vars(seen).update(vars(options) | {"workers": workers})
            return fake_cluster(1, 1, checkpoint_dir=options.checkpoint_dir, **daemons)

        async def fetch_status(host: str, port: int, **_: Any) -> ClusterStatus:
            return make_status(phase="finished", epoch=10, chunks_done=80)

        monkeypatch.setattr(train, "cluster_from", cluster_from)
        monkeypatch.setattr(train, "fetch_status", fetch_status)
        monkeypatch.setattr(train, "take_checkpoint", save)
        return seen

    return install


Trained = Callable[..., argparse.Namespace]


def test_the_last_status_is_of_a_time_when_workers_are_done_and_servers_are_not(
    fake_cluster: MakeCluster, make_status: MakeStatus
) -> None:
    cluster = fake_cluster(2, 2, worker="0")
    returncodes: list[tuple[int | None, ...]] = []
    shown: list[ClusterStatus | None] = []

    async def fetch(host: str, port: int) -> ClusterStatus:
        assert f"{host}:{port}" == cluster.address
        returncodes.append(tuple(child.returncode for child in (*cluster.workers, *cluster.servers)))
        return make_status()

    result = train.train(cluster, JOB, BLIND._replace(show=shown.append), fetch, save)
    assert returncodes[-1] == (0, 0, None, None)
    assert result.examples == 4500
    assert result.checkpoint is None  # there is no place for one
    assert shown[0] is None
    assert shown[-1] == make_status()


def test_a_server_that_does_not_answer_is_the_cluster_s_to_explain(fake_cluster: MakeCluster) -> None:
    cluster = fake_cluster(1, 1)
    calls = 0

    async def fetch(host: str, port: int) -> ClusterStatus:
        nonlocal calls
        calls += 1
        if calls == 1:
            cluster.servers[0].terminate()
        raise Unreachable("no server answers")

    with pytest.raises(ProcessFailed, match="server-0 ended with exit code 143"):
        train.train(cluster, JOB, BLIND, fetch, save)


def test_a_worker_that_is_killed_is_said_and_the_others_finish(
    fake_cluster: MakeCluster, make_status: MakeStatus, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = fake_cluster(1, 2)

    async def fetch(host: str, port: int) -> ClusterStatus:
        one, other = cluster.workers
        if one.returncode is None:
            os.kill(one.pid, signal.SIGKILL)
        elif other.returncode is None and caplog.messages and "flags" in other.log_tail():
            os.kill(other.pid, signal.SIGUSR1)  # it is done
        return make_status()

    assert train.train(cluster, JOB, BLIND, fetch, save).examples == 4500
    assert caplog.messages == ["worker-0 was killed by SIGKILL; the job goes on without it"]


def test_json_is_one_object_and_nothing_else(trained: Trained, capsys: Output) -> None:
    trained(worker="0")
    assert cli.main(["train", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert json.loads(out)["metrics"] == {"accuracy": 0.75}
    assert err == ""  # it is no terminal


def test_a_report_is_written_and_named(trained: Trained, capsys: Output, tmp_path: Path) -> None:
    trained(worker="0")
    assert cli.main(["train", "--format", "json", "--report", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1, "standard output is for the result"
    assert err == f"report: {tmp_path / 'new' / 'report.html'}\n"
    assert "digits" in (tmp_path / "new" / "report.html").read_text()


LOWER = "train.on-divergence=lower-rate"


def test_what_is_gone_back_to_is_kept_until_the_end(
    trained: Trained, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained(worker="0")
    monkeypatch.setattr(train, "take_checkpoint", lambda *_, **__: pytest.fail("nobody wants it"))
    assert cli.main(["train", "--format", "json", "--set", LOWER]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["checkpoint"] is None
    assert err == "", "it goes on from nothing"
    assert Path(seen.checkpoint_dir).is_absolute()
    assert not Path(seen.checkpoint_dir).exists()


def test_what_is_gone_back_to_is_removed_after_a_failure_too(trained: Trained, capsys: Output) -> None:
    seen = trained(worker="1")
    assert cli.main(["train", "--set", LOWER]) == 1
    assert "goes on from" not in capsys.readouterr().err
    assert not Path(seen.checkpoint_dir).exists()


def test_where_it_is_said_what_is_kept_that_is_gone_back_to(
    trained: Trained, capsys: Output, tmp_path: Path
) -> None:
    seen = trained(worker="0")
    assert cli.main(["train", "--set", LOWER, "--checkpoint-dir", str(tmp_path)]) == 0
    assert seen.checkpoint_dir == str(tmp_path)
    assert cli.main(["train", "--set", LOWER, "--durability", "none"]) == 2
    assert "give --checkpoint-dir" in capsys.readouterr().err


def test_each_return_after_divergence_is_said_once(
    fake_cluster: MakeCluster, troubled: ClusterStatus, make_status: MakeStatus
) -> None:
    said: list[str] = []
    looks: list[int] = []
    cluster = fake_cluster(1, 1)

    async def fetch(host: str, port: int) -> ClusterStatus:
        looks.append(1)
        worker = cluster.workers[0]
        if len(looks) > 2 and worker.returncode is None and "flags" in worker.log_tail():
            os.kill(worker.pid, signal.SIGUSR1)  # it is done
        return troubled if len(looks) > 1 else make_status()

    train.train(cluster, JOB, BLIND._replace(say=said.append), fetch, save)
    assert said == [
        "digits went back after divergence: 2 times, last from loss nan in step 1,200 to checkpoint 3; "
        "learning rate x 0.25"
    ]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_model_that_is_no_good_is_warned_of(
    trained: Trained, troubled: ClusterStatus, monkeypatch: pytest.MonkeyPatch, capsys: Output, form: str
) -> None:
    async def fetch_status(host: str, port: int, **_: Any) -> ClusterStatus:
        return troubled

    trained(worker="0")
    monkeypatch.setattr(train, "fetch_status", fetch_status)
    assert cli.main(["train", "--format", form]) == 0
    err = capsys.readouterr().err
    assert "psctl train: warning: r2 is -468" in err
    assert "psctl train: warning: lower [optimizer] lr" in err


@pytest.mark.parametrize(
    ("flags", "workers"),
    [
        ([], 2),
        (["--workers", "3"], 3),
        (["--set", "train.workers=3"], 3),
        (["--set", "train.workers=3", "--workers", "3"], 3),
        (["--job", "JOB"], 5),
        (["--job", "JOB", "--set", "train.workers=3"], 3),
        (["--job", "JOB", "--workers", "3"], 3),
    ],
)
def test_how_many_workers_there_are(
    flags: list[str], workers: int, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "JOB").write_text('[model]\nkind = "softmax"\n[train]\nworkers = 5\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "result_of", lambda *_: pytest.fail("it was not finished"))
    seen = trained(worker="2")  # which ends it at once
    assert cli.main(["train", *flags]) == 2
    assert seen.workers == workers


def test_two_flags_with_different_numbers_of_workers_are_refused(trained: Trained, capsys: Output) -> None:
    seen = trained(worker="0")
    assert cli.main(["train", "--workers", "2", "--set", "train.workers=3"]) == 2
    err = capsys.readouterr().err
    assert "--workers=2" in err
    assert "train.workers=3" in err
    assert vars(seen) == {}, "nothing was started"


def test_a_report_that_could_not_be_written_is_refused_before_the_training(
    trained: Trained, capsys: Output, tmp_path: Path
) -> None:
    seen = trained(worker="0")
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "--report", str(tmp_path / "file")]) == 2
    assert "report" in capsys.readouterr().err
    assert vars(seen) == {}, "nothing was started"


def test_text_is_plain_lines_and_a_table(
    trained: Trained, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    trained(worker="0")
    assert cli.main(["train"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits · softmax · synchronous\nepoch 10/10, 80/80 chunks")
    assert "accuracy" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_a_terminal_gets_bars(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    trained(worker="0")
    assert cli.main(["train"]) == 0
    assert "\x1b[" in terminal.getvalue()
    assert "━" in terminal.getvalue()


@pytest.mark.parametrize(
    ("worker", "code"),
    [("2", 2), ("10", 10), ("12", 12), ("14", 14), ("15", 15), ("16", 16), ("1", 1), ("77", 1), ("143", 1)],
)
def test_a_worker_s_exit_code_is_ours_if_it_means_something(
    worker: str, code: int, trained: Trained, capsys: Output
) -> None:
    trained(worker=worker)
    assert cli.main(["train"]) == code
    err = capsys.readouterr().err
    assert f"worker-0 ended with exit code {worker}" in err
    assert "why it ends" in err


@pytest.mark.parametrize(("server", "code"), [("2", 2), ("1", 15), ("0", 15)])
def test_a_server_that_ends_is_a_cluster_lost(server: str, code: int, trained: Trained) -> None:
    trained(server=server)
    assert cli.main(["train"]) == code


def test_an_interrupt_stops_the_cluster(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    trained()

    def interrupted(cluster: LocalCluster, timeout: float) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LocalCluster, "wait", interrupted)
    assert cli.main(["train"]) == 130


def test_sigterm_stops_the_cluster(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    trained()

    def terminated(cluster: LocalCluster, timeout: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(LocalCluster, "wait", terminated)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train"])
    assert ended.value.code == 143


def test_a_wrong_job_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(train, "cluster_from", lambda *_: pytest.fail("started"))
    assert cli.main(["train", "--set", "train.epoch=3"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert cli.main(["train", "--job", "no-such-job.toml"]) == 2
    assert "no-such-job.toml" in capsys.readouterr().err


# --- with a place for checkpoints


def test_of_a_job_with_other_settings_it_is_not_said_that_it_is_finished(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus, capsys: Output, tmp_path: Path
) -> None:
    async def fetch(host: str, port: int, **_: Any) -> ClusterStatus:
        return make_status(phase="finished", worker_state="left")

    trained(worker="12")
    monkeypatch.setattr(train, "fetch_status", fetch)
    assert cli.main(["train", "--checkpoint-dir", str(tmp_path)]) == 12
    out, err = capsys.readouterr()
    assert "is finished already" not in out
    assert "of a job with other settings" in err


def test_a_last_checkpoint_is_taken_while_the_servers_are_there(
    fake_cluster: MakeCluster, make_status: MakeStatus, tmp_path: Path
) -> None:
    cluster = fake_cluster(1, 2, worker="0", checkpoint_dir=tmp_path)
    returncodes: list[int | None] = []

    async def fetch(host: str, port: int) -> ClusterStatus:
        return make_status()

    async def save_and_look(host: str, port: int) -> Taken:
        assert f"{host}:{port}" == cluster.address
        returncodes.extend(child.returncode for child in (*cluster.workers, *cluster.servers))
        return await save(host, port)

    result = train.train(cluster, JOB, BLIND, fetch, save_and_look)
    assert result.checkpoint == "/run/checkpoint-00000004"
    assert returncodes == [0, 0, None]


def test_the_result_names_the_checkpoint(trained: Trained, capsys: Output, tmp_path: Path) -> None:
    trained(worker="0")
    assert cli.main(["train", "--format", "json", "--checkpoint-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == "/run/checkpoint-00000004"
    assert cli.main(["train", "--checkpoint-dir", str(tmp_path)]) == 0
    assert "/run/checkpoint-00000004" in capsys.readouterr().out


def test_a_last_checkpoint_that_cannot_be_taken_is_no_success(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path
) -> None:
    async def fail(host: str, port: int, **_: Any) -> Taken:
        raise CheckpointFailed("the disk is full", field="checkpoint", value=4)

    trained(worker="0")
    monkeypatch.setattr(train, "take_checkpoint", fail)
    assert cli.main(["train", "--checkpoint-dir", str(tmp_path)]) == 17
    err = capsys.readouterr().err
    assert "checkpoint=4: the disk is full" in err
    assert f"the same command goes on from what is in {tmp_path}" in err


@pytest.mark.parametrize(
    ("phase", "done", "words"),
    [
        ("train", 24, "going on from {}: epoch 3/10, 24/80 chunks done"),
        ("evaluate", 24, "going on from {}: epoch 3/10, 24/80 chunks done"),
        ("finished", 80, "digits is finished already in {}: nothing is left to train"),
        ("train", 0, None),
    ],
)
def test_it_is_said_where_the_job_goes_on(
    phase: str,
    done: int,
    words: str | None,
    fake_cluster: MakeCluster,
    make_status: MakeStatus,
    tmp_path: Path,
) -> None:
    statuses: Iterator[ClusterStatus] = iter([make_status(phase=phase, chunks_done=done)])
    said: list[str] = []

    async def fetch(host: str, port: int) -> ClusterStatus:
        return next(statuses, make_status(chunks_done=25))  # of what is done later nothing is said

    cluster = fake_cluster(1, 1, worker="0", checkpoint_dir=tmp_path)
    train.train(cluster, JOB, BLIND._replace(say=said.append), fetch, save)
    assert [text.partition(". ")[0] for text in said] == ([] if words is None else [words.format(tmp_path)])


def test_a_new_job_goes_on_from_nothing(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus, capsys: Output, tmp_path: Path
) -> None:
    statuses = iter([make_status(progress=None)])

    async def fetch(host: str, port: int, **_: Any) -> ClusterStatus:
        return next(statuses, make_status(phase="finished"))

    trained(worker="0")
    monkeypatch.setattr(train, "fetch_status", fetch)
    assert cli.main(["train", "--checkpoint-dir", str(tmp_path)]) == 0
    assert "going on" not in capsys.readouterr().out


def test_json_keeps_standard_output_for_the_result(trained: Trained, capsys: Output, tmp_path: Path) -> None:
    trained(worker="0")
    assert cli.main(["train", "--format", "json", "--checkpoint-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith("digits is finished already")


@pytest.mark.parametrize(
    ("worker", "remedy"),
    [
        ("15", "the same command goes on from what is in {}"),
        ("1", "the same command goes on from what is in {}"),
        ("12", "{} is of a job with other settings"),
        ("16", None),
    ],
)
def test_what_can_be_done_after_a_failure(
    worker: str, remedy: str | None, trained: Trained, capsys: Output, tmp_path: Path
) -> None:
    trained(worker=worker)
    cli.main(["train", "--checkpoint-dir", str(tmp_path)])
    err = capsys.readouterr().err
    assert (remedy is None) == (str(tmp_path) not in err)
    assert remedy is None or remedy.format(tmp_path) in err


@pytest.mark.parametrize("directory", [True, False])
def test_an_interrupt_says_how_to_go_on(
    directory: bool, trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path
) -> None:
    def interrupted(cluster: LocalCluster, timeout: float) -> None:
        signal.raise_signal(signal.SIGINT)

    trained()
    monkeypatch.setattr(LocalCluster, "wait", interrupted)
    assert cli.main(["train", *(["--checkpoint-dir", str(tmp_path)] if directory else [])]) == 130
    assert (f"goes on from what is in {tmp_path}" in capsys.readouterr().err) is directory


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--durability", "log"], "there is no --checkpoint-dir"),
        (["--durability", "none", "--checkpoint-dir", "run"], "leave --checkpoint-dir away"),
        (["--durability", "log", "--checkpoint-dir", "s3://b/run"], "a directory of this machine"),
    ],
)
@pytest.mark.parametrize("command", ["up", "train"])
def test_durability_that_no_server_would_take(
    command: str, arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("psctl.cluster_flags.LocalCluster", lambda *_, **__: pytest.fail("started"))
    assert cli.main([command, *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_a_time_that_is_none(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--checkpoint-dir", "run", "--checkpoint-every", "5"])
    assert ended.value.code == 2
    assert "5s" in capsys.readouterr().err
