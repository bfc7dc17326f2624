import numpy as np
import pytest

from benchmarks.online_detectors import BEFORE, CHANGES, DETECTORS, Found, look, sensitivity_table
from benchmarks.online_streams import STREAMS

COUNT = BEFORE + 2000


@pytest.mark.parametrize(("change", "finds"), [(CHANGES[0], True), (CHANGES[-1], False)])
def test_what_changes_is_found_and_nothing_else(change: object, finds: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (COUNT, 2)).astype(np.float32)
    y = ((x[:, 0] > 0) ^ (rng.random(COUNT) < 0.1)).astype(np.int64)  # a tenth of the labels is wrong
    (one,) = [known for known in CHANGES if known is change]
    for found in look(STREAMS[0], x, y, one, seed=0):
        assert [0 < alarm < 300 for alarm in found.alarms] == ([True] if finds else [])


def test_labels_are_reversed_little_by_little() -> None:
    since = np.array([0, 5000, 10_000, 20_000])
    (slowly,) = [one for one in CHANGES if one.label.startswith("all reversed, little")]
    assert slowly.reversed is not None
    assert slowly.reversed(since).tolist() == [0, 0.5, 1, 1]


def test_the_table_tells_what_was_missed() -> None:
    stream, change, quiet = STREAMS[0], CHANGES[1], CHANGES[-1]
    alarms = {"adwin": [(64,), (-500, 96)], "page-hinkley": [(), (2000, 9000)]}
    found = [
        Found(stream.name, one.label, seed, name, alarms[name][seed])
        for one in (change, quiet)
        for name in DETECTORS
        for seed in (0, 1)
    ]
    rows = [line for line in sensitivity_table(found).splitlines() if line.startswith("| SEA")]
    (changed,) = [line for line in rows if change.label in line]
    assert changed.split(change.label)[1] == " | 2 of 2 | 80 (96) | 1 | 1 of 2 | 2,000 (2,000) | 0 |"
    (unchanged,) = [line for line in rows if quiet.label in line]
    assert unchanged.split(quiet.label)[1] == " | - | - | 3 | - | - | 2 |"
