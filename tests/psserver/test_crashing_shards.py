"""A shard with its log and checkpoints may crash at any moment: nothing is lost or counted twice."""

import math

import pytest

from tests.psserver.crashing_shards import Kind, Run

KINDS = [
    Kind(1, 0),
    Kind(2, 0),
    Kind(3, 0),
    Kind(2, 0, deaths=True),
    Kind(2, 0, deaths=True, backup=1),
    Kind(1, 0, deaths=True),
    Kind(2, 2),
    Kind(2, math.inf),
    Kind(2, 0, turns=(0.0, 1.0, math.inf)),
    Kind(2, math.inf, turns=(0.0, 2.0)),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_crashes_nothing_is_lost_or_counted_twice(kind: Kind, seed: int) -> None:
    run = Run(kind, seed)
    await run.go(300, 4)
    run.check()
    await run.end()
