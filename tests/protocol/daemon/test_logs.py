import json
import logging
import subprocess
import sys

import pytest

from protocol.daemon.logs import RateLimited

WHO = ("job", "worker", "shard", "epoch")

LOGGING = """
import logging
from protocol.daemon.logs import Speaker, configure_logs
from protocol.events import about
speaker = Speaker()
configure_logs({form!r}, {level!r}, speaker)
log = logging.getLogger("a.b")
log.info("hello %s", "wörld", extra={{"job": "digits", "path": ValueError("x")}})
speaker.tell = lambda: {{"shard": 1, "job": "my job", "epoch": 7, "worker": None}}
log.debug("quiet")
log.warning("two\\nlines \\x1b[31m")
try:
    raise KeyError("missing")
except KeyError:
    log.exception("it failed", extra=about("failed", worker="w1", epoch=8))
print("stdout is for results")
"""


def logged(form: str, level: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.format(form=form, level=level)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "stdout is for results\n"
    return done.stderr.splitlines()


def test_json_logs_are_one_object_a_line() -> None:
    hello, two_lines, failed = (json.loads(line) for line in logged("json", "info"))
    assert hello.pop("time").endswith("Z")
    assert hello == {"level": "info", "logger": "a.b", "message": "hello wörld", "job": "digits", "path": "x"}
    assert (two_lines["level"], two_lines["message"]) == ("warning", "two\nlines \x1b[31m")
    assert {key: two_lines.get(key) for key in WHO} == {
        "job": "my job",
        "shard": 1,
        "epoch": 7,
        "worker": None,
    }
    assert failed["event"] == "failed"
    assert failed["worker"] == "w1"
    assert failed["epoch"] == 8  # that of which the line is, not of who says it
    assert failed["level"] == "error"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("KeyError: 'missing'")


def test_the_level_is_the_least_severity_shown() -> None:
    assert [json.loads(line)["level"] for line in logged("json", "debug")] == [
        "info",
        "debug",
        "warning",
        "error",
    ]
    assert [json.loads(line)["level"] for line in logged("json", "error")] == ["error"]


def test_text_logs_say_time_level_and_logger() -> None:
    first = logged("text", "info")[0]
    assert first.endswith("INFO    a.b: hello wörld [job=digits]")
    assert first[:4].isdigit()


def test_text_logs_say_who_and_what_of_in_brackets_before_a_traceback() -> None:
    lines = logged("text", "info")
    failed = next(number for number, line in enumerate(lines) if "it failed" in line)
    assert lines[failed].endswith('it failed [event=failed job="my job" worker=w1 shard=1 epoch=8]')
    assert lines[failed + 1].startswith("Traceback")


def test_no_field_of_an_event_is_one_of_the_log_records_own() -> None:
    own = vars(logging.makeLogRecord({}))
    assert not {*WHO, "event", "about_shard", "checkpoint", "server", "timeline", "waiting_for"} & set(own)


def test_lines_left_out_are_counted_in_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimited(logging.getLogger("limited"), interval=10.0)
    for now in (0.0, 0.0, 5.0, 9.99, 10.0, 15.0, 19.9, 100.0, 110.0):
        limited.warning(now, "refused %s at %.2f", "x", now)
    assert [record.getMessage() for record in caplog.records] == [
        "refused x at 0.00",
        "refused x at 10.00 (3 like it left out)",
        "refused x at 100.00 (2 like it left out)",
        "refused x at 110.00",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert {vars(record)["event"] for record in caplog.records} == {"peer.refused"}
