"""What the benchmark of hostile peers says of them, and that it lets them loose on a real server."""

import json

import pytest

from benchmarks.bystander import Latencies
from benchmarks.hostile import Operator, Result, as_json, measure, render_text
from benchmarks.hostile_peers import KINDS, Outcome, inputs, shares

SLOW = frozenset(name for name, kind in KINDS.items() if kind.within)
"""Kinds that a server bears with for a while; see ``tests/psserver/test_reception.py`` for these."""


def latencies(p99: float) -> Latencies:
    return Latencies(pulls=1000, median=100e-6, p99=p99, p999=2 * p99, longest=0.01)


def result(**changed: object) -> Result:
    fields = {
        "counts": {"HTTP": 3, "connect and go": 1},
        "distinct": 2500,
        "outcomes": {"HTTP": Outcome(3, lasted=[0.1, 0.2, 0.3]), "connect and go": Outcome(1)},
        "within": {"HTTP": 0.0, "connect and go": 0.0},
        "growth": 10 << 20,
        "alone": latencies(200e-6),
        "beside": latencies(300e-6),
        "defects": 0,
        "log": "rejected a frame",
        "operator": Operator(30, 0, 0.01),
    }
    return Result(**(fields | changed))  # type: ignore[arg-type]


def test_shares_are_of_the_whole_and_each_kind_is_there() -> None:
    assert sum(shares(10_000).values()) == pytest.approx(10_000, abs=10)
    assert shares(1) == dict.fromkeys(KINDS, 1)
    assert shares(100, without=SLOW).keys() == KINDS.keys() - SLOW


def test_thousands_of_inputs_are_different() -> None:
    counts = shares(10_000, without=SLOW | {"mutated requests, 20 each", "msgpack bombs, 2 each"})
    assert sum(len(inputs(KINDS[name], count)) for name, count in counts.items()) > 2000


def test_the_same_number_makes_the_same_input() -> None:
    for kind in KINDS.values():
        assert inputs(kind, 3) == inputs(kind, 3)


def test_a_result_as_it_has_to_be() -> None:
    assert result().problems() == []
    lines = [" ".join(line.split()) for line in render_text(result()).splitlines()]
    assert "different inputs >= 2,000 2,500" in lines
    assert "growth of the server's peak memory, MiB < 64 10.0" in lines
    assert "p99 of a 1 KB pull beside them, to alone < 2 1.50" in lines
    assert "HTTP 3 - 0.20 0.30 0 0" in lines
    assert as_json(result())["problems"] == []
    json.dumps(as_json(result()))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"growth": 64 << 20}, "grew by 64 MiB"),
        ({"beside": latencies(400e-6)}, "2.00 times"),
        ({"defects": 1}, "1 requests met defects"),
        ({"log": "Traceback (most recent call last):"}, "traceback"),
        ({"outcomes": {"HTTP": Outcome(1, lasted=[3.5])}}, "not gone in time: {'HTTP': 1}"),
        ({"outcomes": {"HTTP": Outcome(1, unfinished=1)}}, "not gone in time: {'HTTP': 1}"),
        ({"operator": Operator(5, 1, 1.0)}, "1 of 5 times"),
    ],
)
def test_what_is_not_as_it_has_to_be_is_named(changed: dict[str, object], problem: str) -> None:
    (found,) = result(**changed).problems()
    assert problem in found


def test_some_hundreds_of_hostile_peers_do_no_harm() -> None:
    """No figure of time is looked at: the machine may be busy."""
    counts = shares(400, without=SLOW - {"replies not read"})
    found = measure(counts, seconds=1.0, idle=2.0, write=1.0, progress=lambda line: None)
    assert {name: outcome.peers for name, outcome in found.outcomes.items()} == counts
    assert not [name for name, outcome in found.outcomes.items() if outcome.unfinished]
    assert found.defects == 0
    assert "Traceback" not in found.log
    assert found.growth < 64 << 20
    assert found.beside.pulls
