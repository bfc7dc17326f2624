"""Guarantees 2 and 3 by histories: what clients were told, against what restarted servers know."""

from pathlib import Path

import pytest

from tests.faults.histories import log_violations, snapshot_violations
from tests.faults.pushing import (
    CHECKPOINT,
    KILL,
    KILL_ALL,
    KILL_IN_CHECKPOINT,
    STOP,
    Pushers,
    make_tensors,
    pull_all,
    push_through,
    take,
    told,
)
from tests.faults.restarts import RestartableCluster
from tests.faults.schedule import Schedule
from tests.faults.slots import vacuous

EACH = 60  # pushes for each fault
LOG = (KILL, KILL_ALL, STOP, CHECKPOINT, KILL_IN_CHECKPOINT)
SNAPSHOT = (CHECKPOINT, KILL, CHECKPOINT, KILL_IN_CHECKPOINT, KILL_ALL)


async def nothing_acknowledged_is_lost(seed: int, faults: int, directory: Path) -> None:
    kills = faults // 3
    schedule = Schedule.random(seed, LOG, faults, over=faults * EACH, targets=2, surely=(KILL,) * kills)
    flags = ("--checkpoint-every", "1s")
    with RestartableCluster(directory, "log", flags=flags, apart=seed % 2 == 1) as cluster:
        await make_tensors(cluster)
        pushers = Pushers(cluster, seed)
        fired = await push_through(schedule, cluster, pushers)
        with told(cluster, schedule):
            final = await pull_all(cluster)
            wrong = log_violations(pushers.history, final)
            assert not wrong, "\n".join(wrong)
            assert not pushers.history.outcomes().unknown, "nobody is fenced"
        happened = {**fired, "kills": cluster.kills}
        reasons = vacuous(
            pushers.history.outcomes(),
            happened,
            least_acknowledged=faults * EACH * 3 // 4,
            least_faults={"kills": kills},
        )
        assert not reasons, f"vacuous: {reasons}\n{schedule}"


async def test_nothing_acknowledged_is_lost(fault_seed: int, tmp_path: Path) -> None:
    await nothing_acknowledged_is_lost(fault_seed, 4, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(10))
async def test_nothing_acknowledged_is_lost_over_and_over(
    fault_seed: int, number: int, tmp_path: Path
) -> None:
    await nothing_acknowledged_is_lost(fault_seed + number, 20, tmp_path)


async def it_goes_back_to_a_state_that_was(seed: int, faults: int, directory: Path) -> None:
    schedule = Schedule.random(
        seed, SNAPSHOT, faults, over=faults * EACH, targets=2, surely=(CHECKPOINT, KILL)
    )
    flags = ("--checkpoint-every", "0s", "--keep", "100")
    with RestartableCluster(directory, "snapshot", flags=flags, apart=seed % 2 == 1) as cluster:
        await make_tensors(cluster)
        pushers = Pushers(cluster, seed)
        assert await take(cluster, pushers)
        fired = await push_through(schedule, cluster, pushers)
        with told(cluster, schedule):
            final = await pull_all(cluster)
            wrong = snapshot_violations(pushers.history, final, cluster.bases())
            assert not wrong, "\n".join(wrong)
        happened = {**fired, "kills": cluster.kills, "restores": len(cluster.bases()) - 1}
        reasons = vacuous(
            pushers.history.outcomes(),
            happened,
            least_acknowledged=faults * EACH // 2,
            least_faults={"restores": 1, "kills": 1},
        )
        assert not reasons, f"vacuous: {reasons}\n{schedule}"


async def test_it_goes_back_to_a_state_that_was(fault_seed: int, tmp_path: Path) -> None:
    await it_goes_back_to_a_state_that_was(fault_seed, 5, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(10))
async def test_it_goes_back_to_a_state_that_was_over_and_over(
    fault_seed: int, number: int, tmp_path: Path
) -> None:
    await it_goes_back_to_a_state_that_was(fault_seed + number, 20, tmp_path)
