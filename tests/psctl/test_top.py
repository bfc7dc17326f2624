import asyncio
import io
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import BadRequest, ShuttingDown, Unreachable
from protocol.status import ClusterStatus
from psctl import cli, top
from psctl.dashboard import View
from psctl.keys import DOWN, PAGE_DOWN, PAGE_UP, UP
from psctl.top import Silence, watch

MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]
Step = ClusterStatus | Exception | signal.Signals
GONE = Unreachable("no server answers", field="server", value="127.0.0.1:7070")


def fetching(*steps: Step) -> Callable[..., Awaitable[ClusterStatus]]:
    """Return what answers, or fails, with one step after the other; a signal ends the wait for an answer."""
    left = iter(steps)

    async def fetch(*address: object, within: float = 0.0, **_: object) -> ClusterStatus:
        match next(left):
            case signal.Signals() as number:
                signal.raise_signal(number)
                await asyncio.Event().wait()
                raise AssertionError("nothing sets it")
            case Exception() as error:
                raise error
            case status:
                return status

    return fetch


# --- the loop


async def no_pause() -> None:
    pass


async def watched(*steps: Step, times: tuple[float, ...]) -> list[tuple[ClusterStatus, Silence | None]]:
    """Return what is shown until the last step, an error that will not go away."""
    clock = iter(times)
    shown: list[tuple[ClusterStatus, Silence | None]] = []
    with pytest.raises(BadRequest):
        await watch(
            fetching(*steps, BadRequest("enough")),
            lambda status, silence: shown.append((status, silence)),
            no_pause,
            lambda: next(clock),
        )
    return shown


async def test_each_status_is_shown(make_status: MakeStatus) -> None:
    one, two = make_status(epoch=1), make_status(epoch=2)
    assert await watched(one, two, times=(1.0, 2.0)) == [(one, None), (two, None)]


async def test_a_cluster_that_stops_answering_is_said_to_and_asked_again(make_status: MakeStatus) -> None:
    one, two = make_status(epoch=1), make_status(epoch=2)
    stopping = ShuttingDown("bye")
    shown = await watched(one, stopping, GONE, two, GONE, times=(100.0, 101.5, 160.0, 170.0, 171.0))
    assert shown == [
        (one, None),
        (one, Silence(stopping, 100.0, 1.5)),
        (one, Silence(GONE, 100.0, 60.0)),
        (two, None),
        (two, Silence(GONE, 170.0, 1.0)),
    ]


async def test_a_cluster_that_never_was_there_is_an_error() -> None:
    with pytest.raises(Unreachable):
        await watch(fetching(GONE), lambda status, silence: pytest.fail("shown"), no_pause)


# --- the command


def run(monkeypatch: pytest.MonkeyPatch, *steps: Step, flags: tuple[str, ...] = ()) -> int:
    monkeypatch.setattr(top, "fetch_status", fetching(*steps))
    return cli.main(["top", "--every", "100ms", *flags])


def test_where_there_is_no_terminal_each_status_is_printed(
    make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    one, two = make_status(epoch=3), make_status(epoch=4)
    assert run(monkeypatch, one, GONE, GONE, two, signal.SIGINT) == 0
    out, err = capsys.readouterr()
    heads = [
        line for line in out.splitlines() if line.startswith(("1 server", "no answer")) or "train:" in line
    ]
    assert [head.split(",")[0].strip() for head in heads] == [
        "1 server", "train: epoch 3/10", heads[2].split(",")[0], "1 server", "train: epoch 4/10",
    ]  # fmt: skip
    assert heads[2].startswith("no answer since ")
    assert heads[2].endswith("trying on: server=127.0.0.1:7070: no server answers")
    assert "float32" in out
    assert err == ""


def test_json_is_one_object_a_line(
    make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    steps = (make_status(staleness=3.0), GONE, GONE, make_status(staleness=4.0), signal.SIGINT)
    assert run(monkeypatch, *steps, flags=("--format", "json")) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["jobs"][0]["staleness"] for line in out.splitlines()] == [3.0, 4.0]
    assert err.count("no answer since") == 1


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    assert run(monkeypatch, GONE) == 10
    assert capsys.readouterr().err == f"psctl top: {GONE}\n"


def test_sigterm_ends_it_in_order(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, make_status(), signal.SIGTERM) == 143


def test_it_ends_with_its_reader(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert run(monkeypatch, make_status(), flags=("--format", "json")) == 0
    # Closing it flushes what was left: it went nowhere, and nobody complained.


@pytest.mark.parametrize("every", ["0s", "99ms", "1", "soon"])
def test_a_pause_that_is_none(every: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["top", "--every", every])
    assert ended.value.code == 2
    assert f"'{every}'" in capsys.readouterr().err


# --- on a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Have standard output be a terminal from now on; pytest would undo what a fixture does here."""
    found = Terminal()
    monkeypatch.setattr("sys.stdout", found)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no keys
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    return found


OPENED, CLOSED = "\x1b[?1049h", "\x1b[?1049l"  # the other screen, and back


def test_a_terminal_is_drawn_over_and_restored(
    make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch)
    assert run(monkeypatch, make_status(), GONE, signal.SIGINT) == 0
    drawn = terminal.getvalue()
    assert drawn.count(OPENED) == drawn.count(CLOSED) == 1
    first, last = drawn.split("no answer since ", 1)
    assert "every 0.1 s; q or Ctrl-C ends" in first
    for part in (first, last):
        assert "worker-1" in part  # what is known last stays
    assert last.rstrip().endswith(("\x1b[?25h", CLOSED))  # the cursor is back


def test_colours_can_be_taken_away(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile(r"\x1b\[(\d+;)*[34][0-7](;\d+)*m")
    for no_color, colours in (("", True), ("1", False)):
        terminal = terminal_of(monkeypatch)
        monkeypatch.setenv("NO_COLOR", no_color)
        assert run(monkeypatch, make_status(), signal.SIGINT) == 0
        assert bool(coloured.search(terminal.getvalue())) == colours
        assert "worker-1" in terminal.getvalue()


def test_a_screen_is_not_opened_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    assert run(monkeypatch, GONE) == 10
    assert terminal.getvalue() == ""


def test_all_jobs_have_a_place_on_the_screen(
    make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch)
    status = make_status(names=tuple(f"w{i:02}" for i in range(60)))
    several = tuple(replace(status.jobs[0], name=f"job-{number}") for number in range(3))
    assert run(monkeypatch, replace(status, jobs=several), signal.SIGINT) == 0
    drawn = terminal.getvalue()
    assert all(f"job-{number}" in drawn for number in range(3))
    assert drawn.count("training ") > 10
    assert " of 60; arrow keys show others" in drawn


def test_the_screen_is_drawn_anew_when_the_terminal_changes_its_size(
    make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal_of(monkeypatch)
    drawn: list[ClusterStatus] = []

    def draw(status: ClusterStatus, *rest: object, **more: object) -> str:
        drawn.append(status)
        asyncio.get_running_loop().call_soon(
            signal.raise_signal, signal.SIGWINCH if len(drawn) == 1 else signal.SIGINT
        )
        return "drawn"

    monkeypatch.setattr(top, "Dashboard", draw)
    status = make_status()
    monkeypatch.setattr(top, "fetch_status", fetching(status))
    assert cli.main(["top", "--every", "1h"]) == 0
    assert drawn == [status, status]


def test_a_dumb_terminal_is_printed_to(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert run(monkeypatch, make_status(), signal.SIGINT) == 0
    assert OPENED not in terminal.getvalue()
    assert "worker-1" in terminal.getvalue()


def test_q_ends_it(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    master, slave = os.openpty()
    status = make_status()

    async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
        os.write(master, b"q")
        return status

    monkeypatch.setattr(top, "fetch_status", fetch_status)
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(["top", "--every", "1h"]) == 0
    os.close(master)
    assert CLOSED in terminal.getvalue()


def test_keys_move_what_is_looked_at(make_status: MakeStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    master, slave = os.openpty()
    status = make_status(names=tuple(f"w{i:02}" for i in range(60)))
    status = replace(status, jobs=(status.jobs[0], replace(status.jobs[0], name="clicks")))
    seen: list[View] = []

    def draw(status: ClusterStatus, view: View, *rest: object, **more: object) -> str:
        seen.append(view)
        return "drawn"

    async def fetch_status(host: str, port: int, *, within: float, **_: Any) -> ClusterStatus:
        os.write(master, f"{UP}{DOWN}{DOWN}{PAGE_DOWN}{PAGE_UP}w\t{DOWN}wq".encode())
        return status

    monkeypatch.setattr(top, "fetch_status", fetch_status)
    monkeypatch.setattr(top, "Dashboard", draw)
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(["top", "--every", "1h"]) == 0
    os.close(master)
    assert seen == [
        View(), View(), View(0, 1), View(0, 2), View(0, 15), View(0, 2), View(0, 2, True), View(1, 0, True),
        View(1, 1, True), View(1, 1),
    ]  # fmt: skip
    assert CLOSED in terminal.getvalue()
