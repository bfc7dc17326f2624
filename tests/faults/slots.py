"""Oracles: given what was pushed and what became of each push, what is wrong with the values in the end.

The slot oracle: push number n adds 1.0 to slot n of every tensor that it names, so each push leaves a trace
of its own, and one that was lost, applied twice or applied although it was refused can be named. The sum
oracle is for many clients that push known integers to the same place.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_MOST_NAMED = 20  # violations of one tensor that are told one by one


def slot_gradient(number: int, slots: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Return the gradient of push ``number``: 1 in that slot.

    Raises:
        ValueError: there is no such slot.
    """
    if not 0 <= number < slots:
        raise ValueError(f"number must be a slot from 0 to {slots - 1}, not {number!r}")
    gradient = np.zeros(slots, dtype)
    gradient[number] = 1
    return gradient


@dataclass(slots=True)
class Outcomes:
    """What became of the pushes of a run, by number: filled in by the test as it learns it."""

    acknowledged: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)  # with an error that promises that nothing has changed
    unknown: set[int] = field(default_factory=set)  # the connection ended before an answer

    def check(self, slots: int) -> None:
        """Check that each push has one outcome, and a slot.

        Raises:
            ValueError: the test has kept its books badly.
        """
        said = Counter([*self.acknowledged, *self.refused, *self.unknown])
        if several := sorted(number for number, times in said.items() if times > 1):
            raise ValueError(f"outcomes: pushes {several} have more than one")
        if outside := sorted(number for number in said if not 0 <= number < slots):
            raise ValueError(f"outcomes: pushes {outside} have no slot among {slots}")


def slot_violations(final: Mapping[str, Array], outcomes: Outcomes) -> list[str]:
    """Say what is wrong with the final values, by tensor and slot; nothing if all is well.

    An acknowledged push must be there exactly once, a refused one not at all, an unknown one once or not at
    all; every other slot must be 0. Where pushes went to different tensors, call it for each, with the
    outcomes of its pushes.

    Raises:
        ValueError: a push has several outcomes, or no slot.
    """
    found = []
    for tensor, values in final.items():
        outcomes.check(values.size)
        wrong = _wrong_slots(values.ravel(), outcomes)
        found += [f"{tensor}[{number}] is {value}: {why}" for number, value, why in wrong[:_MOST_NAMED]]
        if len(wrong) > _MOST_NAMED:
            found.append(f"{tensor}: {len(wrong) - _MOST_NAMED} more slots are wrong")
    return found


def _wrong_slots(values: Array, outcomes: Outcomes) -> list[tuple[int, Any, str]]:
    judged = ((number, value, _judge(number, value, outcomes)) for number, value in enumerate(values))
    return [(number, value, why) for number, value, why in judged if why]


def _judge(number: int, value: float, outcomes: Outcomes) -> str:
    """Return what is wrong with a slot, or nothing."""
    said = _said(number, outcomes)
    if value not in {0, 1}:
        return f"{said}, applied in part or twice"
    if value == 0:
        return "acknowledged, and lost" if said == "acknowledged" else ""
    return f"{said}, and applied" if said in {"refused", "never pushed"} else ""


def _said(number: int, outcomes: Outcomes) -> str:
    for name in ("acknowledged", "refused", "unknown"):
        if number in getattr(outcomes, name):
            return name
    return "never pushed"


def vacuous(
    outcomes: Outcomes, faults: Mapping[str, int], *, least_acknowledged: int, least_faults: Mapping[str, int]
) -> list[str]:
    """Say why a run without violations proves nothing; nothing if it proves something.

    ``faults`` is what has really happened, by name, such as ``{"cuts": proxy.seen.cuts}``; of each name in
    ``least_faults`` there must be so many.
    """
    reasons = []
    if len(outcomes.acknowledged) < least_acknowledged:
        reasons.append(
            f"{len(outcomes.acknowledged)} pushes were acknowledged, less than {least_acknowledged}"
        )
    for name, least in least_faults.items():
        if faults.get(name, 0) < least:
            reasons.append(f"{faults.get(name, 0)} {name} happened, less than {least}")
    return reasons


def sum_violations(
    final: Mapping[str, Array], acknowledged: Sequence[int], unknown: Sequence[int] = ()
) -> list[str]:
    """Say which tensors do not hold the sum of what was pushed; nothing if all do.

    Every push added one integer of 1 or more to every element. All acknowledged ones must be there, with any
    of the unknown ones, each once. Elements may differ in which: they may be on different shards.

    Raises:
        ValueError: an integer is less than 1, or the sum of all is not exact in a tensor's dtype.
    """
    if least := [pushed for pushed in (*acknowledged, *unknown) if pushed < 1]:
        raise ValueError(f"pushed integers must be 1 or more, not {least[0]!r}")
    sure, reachable = sum(acknowledged), _subset_sums(unknown)
    allowed = f"{sure} with any of {len(unknown)} unknown pushes" if unknown else f"{sure}"
    found = []
    for tensor, values in final.items():
        _check_exact(tensor, values, sure + sum(unknown))
        for value, where in zip(*np.unique(values, return_index=True), strict=True):
            rest = value.item() - sure
            if not _reached(rest, reachable):
                found.append(f"{tensor}[{where}] is {value}, not {allowed}: off by {rest}")
    return found


def _check_exact(tensor: str, values: Array, total: int) -> None:
    whole = values.dtype.kind in "iu"
    most = np.iinfo(values.dtype).max if whole else 1 << np.finfo(values.dtype).nmant + 1
    if total > most:
        raise ValueError(f"{tensor}: a sum of {total} is not exact in {values.dtype}")


def _subset_sums(integers: Iterable[int]) -> int:
    """Return the sums of all subsets as a bit set: bit s is set if there is one with the sum s."""
    reachable = 1
    for integer in integers:
        reachable |= reachable << integer
    return reachable


def _reached(rest: float, reachable: int) -> bool:
    return math.isfinite(rest) and rest >= 0 and rest == int(rest) and bool(reachable >> int(rest) & 1)
