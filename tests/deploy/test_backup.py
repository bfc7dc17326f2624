"""What docs/operations.md says of backups: copies of disks are put together, restored, and put back."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from psctl import LocalCluster
from psworker.client import connect
from psworker.sync import connect as connect_sync
from tests.faults.restarts import RestartableCluster

ELEMENTS = 40_000  # enough for a block on each of two servers
JOB = "sums"


def psctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "psctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def copy(cluster: RestartableCluster, number: int, backup: Path) -> None:
    """Copy a checkpoint's directory from each server's disk to one place, as `scp -r` does."""
    name = f"checkpoint-{number:08}"
    for server in range(len(cluster)):
        shutil.copytree(cluster.place(server) / name, backup / name, dirs_exist_ok=True)


@pytest.mark.timeout(240)
async def test_disks_are_copied_to_one_place_restored_elsewhere_and_put_back(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    flags = ("--checkpoint-every", "0s")
    with RestartableCluster(tmp_path / "state", "log", flags=flags, apart=True) as cluster:
        async with connect(cluster.address, JOB) as client:
            await client.create("w", np.random.default_rng(0).normal(size=ELEMENTS))
            saved = await client.pull("w")
            done = await cluster.checkpoint()
            assert done is not None
            copy(cluster, done.checkpoint, backup)
            await client.push({"w": np.ones(ELEMENTS)})
        inspected = await asyncio.to_thread(psctl, "inspect", str(backup))
        assert inspected.returncode == 0, inspected.stdout
        assert "every checksum right" in inspected.stdout

        # A disk is lost: with its part of that checkpoint from the copy, all can go back to it.
        cluster.kill(1)
        shutil.rmtree(cluster.place(1))
        name = f"checkpoint-{done.checkpoint:08}"
        shutil.copytree(backup / name, cluster.place(1) / name)
        cluster.start(1)
        for number in (0, 1):
            await asyncio.to_thread(cluster.server(number).wait_for, "timeline 2 begins")
        async with connect(cluster.address, JOB, observe=True) as reader:
            assert (await reader.pull("w")).tobytes() == saved.tobytes()

    with LocalCluster(servers=1, checkpoint_dir=tmp_path / "new") as elsewhere:
        restored = psctl("restore", str(backup), "--server", elsewhere.address)
        assert restored.returncode == 0, restored.stderr
        with connect_sync(elsewhere.address, JOB, observe=True) as reader:
            assert reader.pull("w").tobytes() == saved.tobytes()
