"""What an operator does with durability, by real processes: checkpoints, damage, going on, going back."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from protocol.addresses import split_address
from protocol.errors import Fenced
from protocol.optimizers import SGD, Add
from protocol.status import DurabilityStatus
from psctl import LocalCluster
from psctl.checkpoint import take_checkpoint
from psworker.asking import fetch_status
from psworker.client import Client
from psworker.client import connect as connect_async
from psworker.sync import connect
from tests.faults.restarts import Mode, RestartableCluster
from tests.faults.schedule import Progress
from tests.integration.daemons import daemons
from tests.integration.points import ROWS, write_points

Values = npt.NDArray[np.float64]

ON_DEMAND = ("--checkpoint-every", "0s")
ONE, OTHER = "checkpoint-00000001", "checkpoint-00000002"
ELEMENTS = 30_000  # enough for a block on each of two servers
RATE = 0.1


def psctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "psctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def durability_of(address: str) -> DurabilityStatus:
    return asyncio.run(fetch_status(*split_address(address))).durability


def gradient(seed: int) -> Values:
    return np.random.default_rng(seed).normal(size=ELEMENTS)


def pulled(address: str) -> Values:
    with connect(address, job=None, observe=True) as reader:
        return reader.pull("w")


def same(one: Values, other: Values) -> bool:
    return one.tobytes() == other.tobytes()


def damage(path: Path, at: int = -1) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True, slots=True)
class Saved:
    """Two servers that run, and the checkpoints that an operator had them take."""

    address: str
    directory: Path
    said: str  # by ``psctl checkpoint``
    first: Values  # the parameters then, and when the second one was taken
    second: Values

    def copy(self, place: Path) -> Path:
        """Return a directory with these two checkpoints, without any that restores have added since."""
        for one in (ONE, OTHER):
            shutil.copytree(self.directory / one, place / one)
        shutil.copy(self.directory / "cluster.json", place)
        return place


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    directory = tmp_path_factory.mktemp("saved")
    with LocalCluster(servers=2, checkpoint_dir=directory, checkpoint_every="0s") as cluster:
        with connect(cluster.address, "sums", name="a") as client:
            client.create("w", gradient(0), SGD(lr=RATE))
            client.push({"w": gradient(1)})
            first = client.pull("w")
            said = psctl("checkpoint", "--server", cluster.address)
            assert (said.returncode, said.stderr) == (0, "")
            client.push({"w": gradient(2)})
            second = client.pull("w")
            asyncio.run(take_checkpoint(*split_address(cluster.address)))
        yield Saved(cluster.address, directory, said.stdout, first, second)


pytestmark = pytest.mark.xdist_group("durable")  # or each process would save anew


# --- checkpoints of a cluster that runs


def test_a_checkpoint_is_where_it_is_said_to_be_and_can_be_looked_into(saved: Saved) -> None:
    size, place = saved.said.splitlines()
    assert re.fullmatch(r"checkpoint 1: \d+\.\d KiB in \d+\.\d\d s", size)
    assert place == f"{saved.directory}/{ONE}"

    text = psctl("inspect", str(saved.directory))
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith(f"2 checkpoints in {saved.directory}\n")
    for fact in ("\ncheckpoint 2, taken ", "2 shards, 1 job", "\njob sums\n", "2 updates", f"{ELEMENTS}"):
        assert fact in text.stdout
    assert text.stdout.endswith("\nsound: 6 files, every checksum right\n")

    told = psctl("inspect", place, "--format", "json")
    assert (told.returncode, told.stderr) == (0, "")
    (found,) = json.loads(told.stdout)["checkpoints"]
    assert (found["checkpoint"], found["state"], found["problems"]) == (1, "sound", [])
    assert found["manifest"]["header"]["shards"] == 2
    assert [(job["name"], job["updates"]) for job in found["manifest"]["jobs"]] == [("sums", 1)]


# --- restoring


def test_a_fresh_cluster_of_another_number_of_servers_goes_on_from_a_checkpoint(
    saved: Saved, tmp_path: Path
) -> None:
    with LocalCluster(servers=1, checkpoint_dir=tmp_path) as cluster:
        done = psctl("restore", f"{saved.directory}/{ONE}", "--server", cluster.address)
        assert (done.returncode, done.stderr) == (0, "")
        heading, job = done.stdout.splitlines()
        assert heading.startswith(f"checkpoint 1 of {saved.directory} restored: ")
        assert heading.endswith("; timeline 2 begins")
        assert job == "  job sums: step 0, 1 tensor of 234.4 KiB"
        with connect(cluster.address, "sums", name="a") as client:
            assert same(client.pull("w"), saved.first)
            client.push({"w": gradient(2)})
            assert same(client.pull("w"), saved.second)  # as the cluster that it was taken of went on


def test_workers_at_work_are_not_restored_away_by_mistake(saved: Saved) -> None:
    restore = ("restore", str(saved.directory), "--checkpoint", "1", "--server", saved.address)
    with connect(saved.address, "sums", name="busy") as client:
        client.push({"w": gradient(3)})
        timeline = durability_of(saved.address).timeline
        refused = psctl(*restore)
        assert (refused.returncode, refused.stdout) == (12, "")
        assert "workers are at work (busy)" in refused.stderr
        assert "--replace" in refused.stderr
        assert durability_of(saved.address).timeline == timeline
        client.push({"w": gradient(4)})  # it is still in

        replaced = psctl(*restore, "--replace")
        assert (replaced.returncode, replaced.stderr) == (0, "")
        assert f"; timeline {timeline + 1} begins\n" in replaced.stdout
        with pytest.raises(Fenced):
            client.push({"w": gradient(5)})
        assert same(client.pull("w"), saved.first)  # it has joined again; of its last push there is nothing
        client.push({"w": gradient(2)})
        assert same(client.pull("w"), saved.second)


def test_a_damaged_checkpoint_is_refused_and_the_cluster_is_as_it_was(saved: Saved, tmp_path: Path) -> None:
    place = saved.copy(tmp_path / "copy")
    damage(place / OTHER / "shard-1.safetensors")
    with connect(saved.address, "sums", name="untouched") as client:
        client.push({"w": gradient(6)})
        before, durability = client.pull("w"), durability_of(saved.address)
        done = psctl("restore", f"{place}/{OTHER}", "--replace", "--server", saved.address)
        assert (done.returncode, done.stdout) == (13, "")
        assert f"{place}/{OTHER}/shard-1.safetensors" in done.stderr
        assert "Traceback" not in done.stderr
        assert durability_of(saved.address).timeline == durability.timeline
        assert same(client.pull("w"), before)
        client.push({"w": gradient(7)})  # nobody is fenced
        assert same(client.pull("w"), before - RATE * gradient(7))


# --- damage


def test_13_every_damaged_file_is_named(saved: Saved, tmp_path: Path) -> None:
    place = saved.copy(tmp_path / "copy")
    files = (f"{ONE}/shard-0.safetensors", f"{OTHER}/shard-1.safetensors", f"{OTHER}/coordinator.json")
    for file in files:
        damage(place / file)
    found = psctl("inspect", str(place))
    assert (found.returncode, found.stderr) == (13, "")
    assert [file for file in files if file not in found.stdout] == []
    with daemons() as start:
        server = start.server("--checkpoint-dir", str(place))
        assert server.exit_code() == 13
        log = server.log()
    assert f"{ONE}/shard-0.safetensors" in log
    assert any(file in log for file in files[1:])
    assert "psctl inspect" in log
    assert "Traceback" not in log


def test_where_one_of_two_checkpoints_is_damaged_the_other_is_gone_on_from(
    saved: Saved, tmp_path: Path
) -> None:
    place = saved.copy(tmp_path / "copy")
    damage(place / OTHER / "shard-0.safetensors")
    with daemons() as start:
        server = start.server("--checkpoint-dir", str(place))
        assert same(pulled(server.addresses()["address"]), saved.first)
        server.process.terminate()
        assert server.exit_code() == 143
        log = server.log()
    assert f"{OTHER}/shard-0.safetensors" in log
    assert re.search(r"state was replaced by checkpoint 1\b", log)
    assert "Traceback" not in log


def test_13_a_log_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    flags = ("--checkpoint-dir", str(tmp_path), "--durability", "log", *ON_DEMAND)
    with daemons() as start:
        server = start.server(*flags)
        with connect(server.addresses()["address"], "sums") as client:
            client.create("w", gradient(0))
            for seed in range(5):
                client.push({"w": gradient(seed)})
        server.process.kill()
        server.exit_code()
        (file,) = (tmp_path / "log/shard-0").iterdir()
        middle = file.stat().st_size // 2
        damage(file, middle)

        again = start.server(*flags)
        assert again.exit_code() == 13
        log = again.log()
    found = re.search(rf"log/shard-0/{file.name}, byte (\d+): ", log)
    assert found is not None
    assert 0 < middle - int(found[1]) <= 2 * 8 * ELEMENTS, "the record that is damaged"
    assert "put the file back from a copy" in log
    assert "Traceback" not in log


# --- psctl train


EPOCHS = 30
HELD_OUT = 172  # of the points' rows


def train_flags(job: Path, place: Path) -> list[str]:
    job_flags = ("--workers", "1", "--job", str(job), "--set", f"train.epochs={EPOCHS}")
    return ["train", *job_flags, "--checkpoint-dir", str(place)]


def interrupted(flags: Sequence[str]) -> tuple[int, str, int]:
    """Train until some chunks are done, interrupt it, and return exit code, standard error and the chunks."""
    with subprocess.Popen(
        [sys.executable, "-m", "psctl", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            done = (re.search(r", (\d+)/\d+ chunks", line) for line in process.stdout)
            chunks = next(int(found[1]) for found in done if found and int(found[1]))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, said, chunks


def test_an_interrupted_training_goes_on_and_counts_every_chunk_once(tmp_path: Path) -> None:
    place = tmp_path / "run"
    flags = train_flags(write_points(tmp_path), place)
    code, said, chunks = interrupted(flags)
    assert code == 130
    assert f"the same command goes on from what is in {place}" in said

    second = psctl(*flags, "--format", "json")
    assert second.returncode == 0, second.stderr
    going_on = re.fullmatch(
        rf"going on from {place}: epoch \d+/{EPOCHS}, (\d+)/{EPOCHS * 8} chunks done\n", second.stderr
    )
    assert going_on is not None, second.stderr
    assert chunks <= int(going_on[1]) < EPOCHS * 8
    result = json.loads(second.stdout)
    assert result["examples"] == EPOCHS * (ROWS - HELD_OUT)
    assert result["metrics"]["accuracy"] >= 0.95

    third = psctl(*flags, "--format", "json")
    assert third.returncode == 0, third.stderr
    assert third.stderr.startswith(f"points is finished already in {place}: nothing is left to train")
    assert {**json.loads(third.stdout), "checkpoint": None} == {**result, "checkpoint": None}


# --- SIGTERM under load

UNDER_WAY = 4  # pushes
MOST = 16_000  # pushes that leave a mark


async def push_marks(client: Client, progress: Progress, done: asyncio.Event) -> int:
    """Push until ``done``, each push with a mark of its own; return how many were acknowledged."""
    pushes = 0

    async def push() -> None:
        nonlocal pushes
        mark = np.zeros(MOST, np.float32)
        mark[pushes] = 1
        pushes += 1
        await client.push({"marks": mark})
        progress.advance()

    while not done.is_set():
        await asyncio.gather(*(push() for _ in range(UNDER_WAY)))
    return pushes


@pytest.mark.parametrize("mode", ["snapshot", pytest.param("log", marks=pytest.mark.long)])
async def test_143_a_server_that_is_stopped_under_load_comes_back_as_it_was(
    mode: Mode, tmp_path: Path
) -> None:
    progress, done = Progress(), asyncio.Event()
    with RestartableCluster(tmp_path, mode, servers=1, flags=ON_DEMAND) as cluster:
        async with connect_async(cluster.address, "marks") as client, asyncio.TaskGroup() as group:
            await client.create("marks", np.zeros(MOST, np.float32), Add())
            pushing = group.create_task(push_marks(client, progress, done))
            await progress.reached(20)
            await asyncio.to_thread(cluster.terminate, 0)  # which checks the exit code
            cluster.start(0)
            await progress.reached(progress.now + 20)
            done.set()
            pushes = await pushing
            marks = await client.pull("marks")
    assert pushes == progress.now
    assert marks.tolist() == [1.0] * pushes + [0.0] * (MOST - pushes)


# --- flags that contradict each other


@pytest.mark.parametrize(
    ("program", "flags", "remedy"),
    [
        (("psserver",), ("--durability", "log"), "needs a --checkpoint-dir"),
        (("psserver",), ("--durability", "none", "--checkpoint-dir", "run"), "leave --checkpoint-dir away"),
        (
            ("psctl", "train"),
            ("--durability", "log", "--checkpoint-dir", "memory://run"),
            "an update log needs a directory of this machine",
        ),
    ],
)
def test_2_durability_that_contradicts_itself(
    program: tuple[str, ...], flags: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    with daemons() as start:
        command = start(*program, *flags, cwd=tmp_path)
        assert command.exit_code() == 2
        assert remedy in command.log()
        assert "Traceback" not in command.log()
    assert list(tmp_path.iterdir()) == []  # nothing was begun
