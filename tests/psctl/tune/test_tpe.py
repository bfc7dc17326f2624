import builtins
import math
from statistics import median
from typing import Any

import pytest

from protocol.errors import BadRequest
from psctl.tune.space import Choices, Settings, space_of
from psctl.tune.tpe import TPE

SPACE = space_of(
    ["optimizer.lr=0.001..1000:log", "train.batch-size=8..512:int:log", "optimizer.name=sgd,adam"]
)


def loss(settings: Settings) -> float:
    """Return how far from a rate of 1 it is, and infinity far above it."""
    rate = dict(settings)["optimizer.lr"]
    assert isinstance(rate, float)
    return abs(math.log10(rate)) if rate < 100 else math.inf


def losses(seed: int) -> list[float]:
    """Return what a search finds, in order."""
    engine = TPE(SPACE, 40, seed)
    found = []
    while (settings := engine.ask()) is not None:
        assert dict(settings)["optimizer.name"] in ("sgd", "adam")
        assert isinstance(dict(settings)["train.batch-size"], int)
        found.append(loss(settings))
        engine.tell(settings, found[-1])
    assert len(found) == engine.total == 40
    return found


def test_it_learns_where_good_settings_are() -> None:
    pytest.importorskip("optuna")
    searches = [losses(seed) for seed in range(4)]
    early = median(one for search in searches for one in search[:10])
    late = median(one for search in searches for one in search[-10:])
    assert late < early / 1.5, "the first ten are drawn at random"


def test_nothing_is_tried_twice_also_while_it_is_untold() -> None:
    pytest.importorskip("optuna")
    engine = TPE({"a.b": Choices((1, 2)), "c.d": Choices(("x", "y"))}, 20, 0)
    asked: list[Settings] = [one for one in (engine.ask() for _ in range(3)) if one is not None]
    for number, settings in enumerate(asked):
        engine.tell(settings, float(number))
    asked += list(iter(engine.ask, None))
    assert len(asked) == len(set(asked)) == 4


def test_without_optuna_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadRequest, match=r"pip install 'asyncps\[tune\]'"):
        TPE(SPACE, 20, 0)
