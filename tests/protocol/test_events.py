import re
from pathlib import Path
from typing import get_args

from protocol.events import Event, about
from tests.chapters import chapter

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for package in ("protocol", "psserver", "psworker") for path in ROOT.glob(f"{package}/**/*.py")
]


def test_operators_are_told_of_every_event_and_of_no_other() -> None:
    logs = chapter("operations.md", "Watching").split("\n### Logs\n", 1)[1]
    rows = re.findall(r"^\| (`.*?) \|", logs, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", " ".join(rows)) == list(
        dict.fromkeys(re.findall(r"`([^`]+)`", " ".join(rows)))
    )
    assert set(re.findall(r"`([^`]+)`", " ".join(rows))) == set(get_args(Event))


def test_every_event_is_told_by_some_line() -> None:
    texts = "".join(path.read_text() for path in SOURCES if path.name != "events.py")
    assert {event for event in get_args(Event) if f'"{event}"' not in texts} == set()


def test_a_line_has_its_event_and_whatever_else_is_known() -> None:
    assert about("shard.lost", about_shard=1) == {"event": "shard.lost", "about_shard": 1}
