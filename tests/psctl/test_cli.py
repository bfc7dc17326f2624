import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import protocol
from protocol.credentials import Access
from protocol.errors import ConnectionLost, UnknownJob, Unreachable, VersionMismatch
from protocol.tls import TLS
from psctl import ProcessFailed, cli
from psctl.cluster_flags import cluster_from
from psworker.errors import JobError

Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return the settings with which ``psctl train`` was last run; nothing is started."""
    settings = argparse.Namespace()

    def run(options: argparse.Namespace) -> int:
        vars(settings).update(vars(options))
        return 0

    monkeypatch.setattr("psctl.train.run", run)
    return settings


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_a_new_user_is_told_the_commands(arguments: list[str], capsys: Output) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for command in ("train", "tune", "up", "status", "top", "set", "inspect"):
        assert f"\n  {command} " in text
        assert f"  psctl {command}" in text


@pytest.mark.parametrize("command", ["train", "tune", "up", "status", "top", "set", "inspect"])
def test_each_command_has_help_with_examples(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: psctl {command} ")
    assert f"\nexamples:\n  psctl {command}" in text
    assert f"[psctl.{command}]" in text


def test_version(capsys: Output) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"psctl {protocol.__version__}\n"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trian", 'did you mean "train"?'),
        (
            "xyz",
            "known: checkpoint, drop, inspect, predict, restore, set, status, token, top, train, tune, up",
        ),
    ],
)
def test_an_unknown_command(word: str, answer: str, capsys: Output) -> None:
    assert cli.main([word]) == 2
    err = capsys.readouterr().err
    assert f'"{word}"' in err
    assert answer in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--workers", "0"],
        ["train", "--servers", "0"],
        ["train", "--servers", "-1"],
        ["train", "--workers", "two"],
        ["train", "--format", "yaml"],
        ["train", "--nonsense"],
        ["up", "--workers", "-1"],
        ["status", "--server", "nowhere"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_defaults(seen: argparse.Namespace) -> None:
    assert cli.main(["train"]) == 0
    assert (seen.servers, seen.workers, seen.job, seen.set, seen.format) == (1, None, None, [], "text")


def test_flag_beats_environment_beats_file(
    seen: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "psctl.toml"
    config.write_text(
        '[psctl.train]\nservers = 2\nworkers = 3\nverbose = true\nset = ["train.epochs=1"]\n'
        "[psctl.up]\nworkers = 9\n"
    )
    monkeypatch.setenv("PSCTL_WORKERS", "4")
    assert cli.main(["train", "--config", str(config)]) == 0
    assert (seen.servers, seen.workers, seen.verbose, seen.set) == (2, 4, True, ["train.epochs=1"])
    assert cli.main(["train", "--config", str(config), "--workers", "5"]) == 0
    assert seen.workers == 5


def test_an_unknown_key_of_the_file_is_refused(tmp_path: Path, capsys: Output) -> None:
    config = tmp_path / "psctl.toml"
    config.write_text("[psctl.train]\nwerkers = 3\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config", str(config)])
    assert ended.value.code == 2
    assert "werkers" in capsys.readouterr().err


def test_flags_make_the_cluster(monkeypatch: pytest.MonkeyPatch, seen: argparse.Namespace) -> None:
    flags = "--servers 3 --workers 4 --job a.toml --set a.b=1 --set c.d=2"
    durability = "--checkpoint-dir run --durability log --checkpoint-every 2m"
    access = "--token-file t --tls-ca ca --tls-cert cert --tls-key key"
    monkeypatch.setattr("psctl.train.credentials_from", lambda options: None)
    cli.main(["train", *flags.split(), *durability.split(), *access.split()])
    made: list[object] = []

    def local_cluster(*arguments: object, **settings: object) -> None:
        made.extend((*arguments, settings))

    monkeypatch.setattr("psctl.cluster_flags.LocalCluster", local_cluster)
    cluster_from(seen, 4)
    kept = {"checkpoint_dir": "run", "durability": "log", "checkpoint_every": "2m"}
    settings = {"port": 0, "echo_logs": False, **kept, "access": Access("t", TLS("ca", "cert", "key"))}
    assert made == [3, 4, Path("a.toml"), ["a.b=1", "c.d=2"], settings]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError("no such program"), 1),
        (TimeoutError("waited 60 s"), 10),
        (Unreachable("no server answers"), 10),
        (VersionMismatch("another version"), 11),
        (UnknownJob("no such job"), 12),
        (ConnectionLost("gone"), 15),
        (JobError("bad job"), 2),
        (ProcessFailed("worker-0", 14, ""), 14),
        (ProcessFailed("worker-0", -9, ""), 1),
        (ProcessFailed("server-0", -9, ""), 15),
        (KeyboardInterrupt("interrupted"), 130),
    ],
)
def test_what_goes_wrong_is_said_and_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def run(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("psctl.train.run", run)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == f"psctl train: {error}\n"


def test_what_only_training_needs_is_not_imported() -> None:
    script = (
        "import sys, psctl.cli; print(sorted({'sklearn', 'scipy', 'uvloop', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_module_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "psctl", "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
