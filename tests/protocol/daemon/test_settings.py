import argparse
from pathlib import Path
from typing import Any

import configargparse
import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol
from protocol.daemon.settings import (
    address,
    duration,
    is_loopback,
    job_name,
    log_flags,
    new_parser,
    port,
    size,
)
from protocol.errors import BadRequest
from protocol.messages import Header, decode_request


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("0s", 0.0), ("1.5s", 1.5), (" 5s ", 5.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("64KiB", 64 << 10),
        ("16 MiB", 16 << 20),
        ("1GiB", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("9007199254740993", 9007199254740993),
        ("9" * 400, int("9" * 400)),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("localhost:1", ("localhost", 1)),
        ("ps-0.ps.default.svc.cluster.local:65535", ("ps-0.ps.default.svc.cluster.local", 65535)),
        ("[::1]:7070", ("::1", 7070)),
        ("[fe80::1%eth0]:7070", ("fe80::1%eth0", 7070)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


def test_ports() -> None:
    assert [port("0"), port("7070"), port("65535")] == [0, 7070, 65535]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((duration, text) for text in ("", "5", "s", "-5s", "5 s", "5d", "1e3s", "5s5s", "nan", "infs")),
        *((size, text) for text in ("", "KiB", "-1", "1KB", "1kib", "1e9", "1MiBs", "1,5GiB", "0x10", "inf")),
        *((port, text) for text in ("", "-1", "65536", "1.0", "http", " 80", "+80", "²", "٣")),
        *((address, text) for text in ("", "host", "host:", ":7070", "[]:7070", "h:0", "h:http", "h:65536")),
        *((job_name, text) for text in ("", "a/b", "a\\b", "..", ".", "a\nb", "\0", "x" * 129, "\ud800")),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_text(parse: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"write|take") as caught:
        parse(text)
    # The port of an address is named alone.
    assert {repr(text), repr(text.rpartition(":")[2])} & set(str(caught.value).split(" is no "))


@given(st.text(st.characters(codec="utf-8"), max_size=130))
def test_a_job_may_have_the_names_that_the_wire_takes(name: str) -> None:
    try:
        decode_request(Header("pull", 1, {"names": [name]}))
        expected = True
    except BadRequest:
        expected = False
    try:
        found = job_name(name) == name
    except argparse.ArgumentTypeError:
        found = False
    assert found == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_hosts_that_only_this_machine_can_reach(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "1"]
)
def test_other_hosts(host: str) -> None:
    assert not is_loopback(host)


# --- flags, environment, file


def parser() -> configargparse.ArgParser:
    made = new_parser("psserver", "Serve.")
    made.add_argument("--port", type=port, default=7070, help="TCP port")
    made.add_argument("--max-frame", type=size, default="1GiB", help="largest payload")
    made.add_argument("--every", type=duration, default="30s", help="interval")
    made.add_argument("--insecure", action="store_true", help="allow others")
    made.add_argument("--set", action="append", default=[], help="job settings")
    log_flags(made)
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[psserver]\nport = 1\nmax-frame = "1KiB"\nevery = "1s"\ninsecure = true\nset = ["a=1", "b=2"]\n'
        "[psworker]\nelsewhere = 1\n"
    )
    return path


def test_defaults() -> None:
    options = parser().parse_args([])
    assert (options.port, options.max_frame, options.every, options.insecure) == (7070, 1 << 30, 30.0, False)
    assert (options.log_format, options.log_level) == ("text", "info")


def test_the_file_beats_the_defaults(config: Path) -> None:
    options = parser().parse_args(["--config", str(config)])
    assert (options.port, options.max_frame, options.every, options.insecure) == (1, 1024, 1.0, True)
    assert options.set == ["a=1", "b=2"]


def test_the_environment_beats_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSSERVER_PORT", "2")
    monkeypatch.setenv("PSSERVER_MAX_FRAME", "2KiB")
    options = parser().parse_args(["--config", str(config)])
    assert (options.port, options.max_frame, options.every) == (2, 2048, 1.0)


def test_a_flag_beats_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSSERVER_PORT", "2")
    monkeypatch.setenv("PSSERVER_EVERY", "2s")
    options = parser().parse_args(["--config", str(config), "--port", "3"])
    assert (options.port, options.every, options.max_frame) == (3, 2.0, 1024)


def test_another_programs_environment_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSWORKER_PORT", "2")
    monkeypatch.setenv("PORT", "3")
    assert parser().parse_args([]).port == 7070


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[psserver]\nprot = 1\n", "--prot"),
        ("[psserver]\nport = 70000\n", "70000"),
        ('[psserver]\nport = "x"\n', "x"),
        ('[psserver]\nmax-frame = "1KB"\n', "1KB"),
        ('[psserver]\nlog-level = "loud"\n', "loud"),
        ("[psserver\n", "TOML"),
    ],
)
def test_a_bad_file_is_a_usage_error_that_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--config", str(path)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot", "1"], "--prot"),
        (["--por", "1"], "--por"),
        (["--port", "x"], "'x' is no port"),
        (["--every", "5"], "'5' is no duration"),
        (["--max-frame", "1GB"], "'1GB' is no size"),
        (["--log-format", "xml"], "xml"),
        (["--config", "/does/not/exist.toml"], "/does/not/exist.toml"),
    ],
)
def test_a_bad_flag_is_a_usage_error_that_says_what(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_bad_variable_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSSERVER_PORT", "x")
    with pytest.raises(SystemExit) as caught:
        parser().parse_args([])
    assert caught.value.code == 2
    assert "'x' is no port" in capsys.readouterr().err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"psserver {protocol.__version__}\n"


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in ("(default: 7070)", "(default: 1GiB)", "(default: 30s)", "(default: text)"):
        assert default in text
    for empty in ("(default: False)", "(default: [])", "(default: None)"):
        assert empty not in text


def test_a_command_has_a_table_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[psctl]\nservers = 1\n[psctl.train]\nservers = 2\n")
    made = new_parser("psctl", "Train.", command="train")
    made.add_argument("--servers", type=int, default=3, help="how many")
    assert made.parse_args(["--config", str(path)]).servers == 2


@pytest.mark.parametrize("text", ["port = 1\n", "[pserver]\nport = 1\n", 'psserver = "x"\n', "[psserver\n"])
def test_a_setting_outside_the_known_tables_is_an_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        new_parser("psserver", "A test.").parse_args(["--config", str(file)])
    assert ended.value.code == 2
    assert "--config" in capsys.readouterr().err
