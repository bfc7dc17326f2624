import itertools
import math
import random
from collections import Counter

import pytest

from protocol.errors import BadRequest
from psctl.tune.engines import Engine, Grid, Random
from psctl.tune.halving import Halving
from psctl.tune.space import Choices, Range, Settings, space_of

SPACE = space_of(["optimizer.lr=0.01..1:log", "train.batch-size=16,64"])


def loss(settings: Settings) -> float:
    """Return the distance of the learning rate from 0.1, in decades."""
    rate = dict(settings)["optimizer.lr"]
    assert isinstance(rate, float)
    return abs(math.log10(rate) + 1)


def all_of(engine: Engine) -> list[Settings]:
    """Return all that is asked for, each told at once."""
    asked = []
    while (settings := engine.ask()) is not None:
        asked.append(settings)
        engine.tell(settings, loss(settings))
    return asked


def test_a_grid_has_every_combination_once() -> None:
    engine = Grid({"a.b": Choices((1, 2, 3)), "c.d": Choices(("x", "y"))})
    asked = [engine.ask() for _ in range(engine.total)]
    assert asked == [(("a.b", a), ("c.d", c)) for a in (1, 2, 3) for c in ("x", "y")]
    assert engine.ask() is None


def test_a_grid_of_an_open_range_says_how_to_write_it() -> None:
    with pytest.raises(BadRequest, match=r"as in optimizer\.lr=0\.01\.\.1:log:5; or take --search random"):
        Grid(SPACE)


def test_random_settings_are_those_of_the_seed_and_all_different() -> None:
    first, again, other = (all_of(Random(SPACE, 20, random.Random(seed))) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 20
    assert set(Counter(dict(settings)["train.batch-size"] for settings in first)) == {16, 64}


def test_short_lists_are_tried_once_each() -> None:
    space = {"a.b": Choices((1, 2)), "c.d": Choices((True, False))}
    asked = all_of_untold(Random(space, 20, random.Random(0)))
    assert len(asked) == len(set(asked)) == 4


def all_of_untold(engine: Engine) -> list[Settings]:
    """Return all that is asked for before anything is told."""
    return list(iter(engine.ask, None))


def test_halving_keeps_the_best_third_with_three_times_the_epochs() -> None:
    engine = Halving(SPACE, 9, 27, random.Random(0))
    rounds: list[list[Settings]] = []
    while asked := all_of_untold(engine):
        rounds.append(asked)
        assert engine.ask() is None, "a round waits for all of the one before"
        for settings in asked:
            engine.tell(settings, loss(settings))
    assert [len(asked) for asked in rounds] == [9, 3, 1]
    assert engine.total == 13
    assert [{dict(one)["train.epochs"] for one in asked} for asked in rounds] == [{3}, {9}, {27}]
    for before, after in itertools.pairwise(rounds):
        best = sorted(before, key=loss)[: len(after)]
        assert [one[:-1] for one in after] == [one[:-1] for one in best]


@pytest.mark.parametrize(
    ("trials", "epochs", "rounds"),
    [
        (20, 60, [(20, 7), (6, 20), (2, 60)]),
        (27, 5, [(27, 2), (9, 5)]),  # there is no third of 2 epochs
        (2, 60, [(2, 60)]),
        (9, 1, [(9, 1)]),
    ],
)
def test_there_are_as_many_rounds_as_trials_and_epochs_allow(
    trials: int, epochs: int, rounds: list[tuple[int, int]]
) -> None:
    engine = Halving(SPACE, trials, epochs, random.Random(0))
    counted = Counter(dict(settings)["train.epochs"] for settings in all_of(engine))
    assert [(counted[epochs], epochs) for _, epochs in rounds] == rounds
    assert engine.total == sum(counted.values())


@pytest.mark.parametrize("worst", [math.inf, math.nan])
def test_what_diverges_goes_no_further(worst: float) -> None:
    engine = Halving({"a.b": Range(0, 1)}, 9, 27, random.Random(0))
    first = all_of_untold(engine)
    for number, settings in enumerate(first):
        engine.tell(settings, worst if number < 7 else float(number))
    second = all_of_untold(engine)
    assert [one[:-1] for one in second] == [first[7][:-1], first[8][:-1]]
    engine.tell(second[0], worst)
    engine.tell(second[1], 1.0)
    assert [one[:-1] for one in all_of_untold(engine)] == [first[8][:-1]], "one of nine sees the last round"


def test_when_all_diverge_it_is_over() -> None:
    engine = Halving(SPACE, 9, 27, random.Random(0))
    for settings in all_of_untold(engine):
        engine.tell(settings, math.inf)
    assert all_of_untold(engine) == all_of_untold(engine) == []
