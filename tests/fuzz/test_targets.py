"""A short run of what `make fuzz` does for longer: real bytes, and real bytes with something changed."""

import random

import pytest

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

ROUNDS = {"server": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_real_bytes_and_changed_ones_are_taken_or_refused_as_promised(name: str) -> None:
    target, numbers = TARGETS[name], random.Random(1)
    seeds = target.seeds()
    assert seeds
    for seed in seeds:
        target.feed(seed)
    for _ in range(ROUNDS.get(name, 300)):
        target.feed(mutated(numbers, seeds))
