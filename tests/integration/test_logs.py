"""Who logs says who it is: the lines of real daemons, for machines."""

import json
from pathlib import Path
from typing import Any

from tests.integration.daemons import Daemon, daemons
from tests.integration.points import NAME, write_points


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    """Return all that a daemon that has ended has said."""
    return [json.loads(line) for line in daemon.log().splitlines()]


def of(found: list[dict[str, Any]], event: str) -> dict[str, Any]:
    (line,) = [one for one in found if one.get("event") == event]
    return line


def test_every_line_says_who_it_is_from(tmp_path: Path) -> None:
    json_logs = ("--log-format", "json")
    with daemons() as start:
        first = start.server("--shards", "2", *json_logs)
        ready = json.loads(first.wait_for('"ready"'))
        second = start.server("--join", ready["address"], *json_logs)
        second.wait_for('"ready"')
        flags = ("--job", str(write_points(tmp_path)), "--set", "train.epochs=1", "--name", "me")
        worker = start.worker(ready["address"], *flags, *json_logs)
        assert worker.exit_code() == 0
        for server in (second, first):
            server.process.terminate()
            assert server.exit_code() == 143
        said, other, mine = lines(first), lines(second), lines(worker)

    assert [line["shard"] for line in said] == [0] * len(said)
    assert [line.get("shard") for line in other] == [1] * len(other)
    joined = of(said, "worker.joined")
    assert (joined["job"], joined["worker"], joined["epoch"]) == (NAME, "me", 1)
    assert of(said, "shard.joined")["about_shard"] == 1
    left = of(said, "worker.left")
    assert (left["job"], left["worker"], left["epoch"]) == (NAME, "me", 2)
    for line in mine:
        assert (line["job"], line["worker"]) == (NAME, "me")
    assert of(mine, "work.begins")["epoch"] == of(mine, "work.done")["epoch"] == 1
