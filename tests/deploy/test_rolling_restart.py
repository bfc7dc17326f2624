"""A rolling restart under training loses nothing: what Kubernetes does to the pods is done to processes."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from protocol.optimizers import Add
from psworker.client import Client, connect
from tests.deploy.manifests import KUBERNETES, program, render
from tests.deploy.pods import Pods
from tests.faults.schedule import Progress
from tests.faults.slots import Outcomes, slot_gradient, slot_violations
from tests.faults.training import Training, check_ledger, write_job
from tests.integration.daemons import Starter

pytestmark = pytest.mark.skipif(
    program("kubectl") is None, reason="no kubectl here: the extra [deploy] brings it"
)

EPOCHS = 2
SLOTS = 8_000
PAUSE = 0.03  # seconds between two pushes: slots enough for as long as the test may take
BETWEEN = 10  # pushes that are acknowledged between two restarts, at least


async def push_slots(client: Client, outcomes: Outcomes, progress: Progress, done: asyncio.Event) -> None:
    """Push until ``done``, each push to a slot of its own."""
    for number in range(SLOTS):
        if done.is_set():
            return
        await client.push({"slots": slot_gradient(number, SLOTS)})
        outcomes.acknowledged.add(number)
        progress.advance()
        await asyncio.sleep(PAUSE)


async def restart_each(pods: Pods, training: Training, progress: Progress) -> None:
    """Restart all servers as a StatefulSet does: from the last to the first, one after another is ready."""
    for done, number in enumerate(reversed(range(len(pods)))):
        job = await asyncio.to_thread(training.until, lambda job: job.progress is not None)
        assert job.progress is not None
        part = job.progress.chunks * (done + 1) // (len(pods) + 2)
        await asyncio.to_thread(training.until_done, part)  # it is in the midst of the job
        await progress.reached(progress.now + BETWEEN)
        await asyncio.to_thread(pods.delete, number)
        await asyncio.to_thread(pods.until_ready, number)
        assert all(pods.is_ready(other) for other in range(number, len(pods)))


@pytest.mark.timeout(240)
async def test_a_rolling_restart_under_training_loses_nothing(tmp_path: Path) -> None:
    job = write_job(tmp_path, 3.0, workers=3, epochs=EPOCHS)
    outcomes, progress, done = Outcomes(), Progress(), asyncio.Event()
    with Pods(render(KUBERNETES / "overlays" / "small"), tmp_path) as pods:
        for number in range(len(pods)):
            await asyncio.to_thread(pods.until_ready, number)
        workers = pods.add_workers(job)
        training = Training([], {}, pods.address, job, Starter(ExitStack()))
        async with connect(pods.address, "slots") as client, asyncio.TaskGroup() as group:
            await client.create("slots", np.zeros(SLOTS, np.float32), Add())
            group.create_task(push_slots(client, outcomes, progress, done))
            await restart_each(pods, training, progress)
            await progress.reached(progress.now + BETWEEN)
            done.set()
        async with connect(pods.address, "slots", observe=True) as reader:
            final = await reader.pull(["slots"])
        for worker in workers:
            assert await asyncio.to_thread(worker.exit_code) == 0, worker.log()
        await asyncio.to_thread(check_ledger, training, EPOCHS)
        logs = pods.logs()
    assert slot_violations(final, outcomes) == []
    assert len(outcomes.acknowledged) >= BETWEEN * (len(pods) + 1)
    assert "Traceback" not in logs
    assert logs.count("stopped with checkpoint") == len(pods), "each of them had its last checkpoint"
