"""Histories: what clients asked of a cluster and what became of it, and what may be true afterwards.

Push number n adds 1.0 at two places of each tensor that it names: slot n from the front, and slot n from the
middle. On a tensor that is spread over two shards these are on different ones, so half a push shows.

All events of a history are of one event loop, and each has its own moment, a number: what ended before
something else was invoked really came before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.faults.slots import Outcomes

Array = npt.NDArray[Any]
Outcome = Literal["acknowledged", "failed", "unknown"]
Halves = tuple[frozenset[int], frozenset[int]]

_MOST_NAMED = 20  # violations of one kind that are told one by one


def marked(number: int, size: int) -> Array:
    """Return the gradient of push ``number``.

    Raises:
        ValueError: there is no such place.
    """
    if not 0 <= number < size // 2:
        raise ValueError(f"number must be from 0 to {size // 2 - 1}, not {number!r}")
    gradient = np.zeros(size, np.float32)
    gradient[[number, size // 2 + number]] = 1
    return gradient


def marks(values: Array) -> Halves:
    """Return the numbers of the pushes that each half of a tensor contains.

    Raises:
        ValueError: some slot is neither 0 nor 1: a push was applied in part or several times.
    """
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        told = ", ".join(f"[{at}] is {values[at]}" for at in wrong[:_MOST_NAMED])
        raise ValueError(f"applied in part or several times: {told}")
    middle = values.size // 2
    front, back = np.flatnonzero(values[:middle]), np.flatnonzero(values[middle:])
    return frozenset(front.tolist()), frozenset(back.tolist())


@dataclass(slots=True)
class Push:
    """A push to some tensors; ``timeline`` is that of the client then."""

    number: int
    tensors: tuple[str, ...]
    timeline: int
    invoked: int
    ended: int | None = None
    outcome: Outcome = "unknown"

    def acknowledged_before(self, moment: int) -> bool:
        return self.outcome == "acknowledged" and self.ended is not None and self.ended < moment


@dataclass(slots=True)
class Pull:
    """A pull that was answered, and the pushes that it saw, by tensor and half."""

    timeline: int
    invoked: int
    ended: int
    seen: Mapping[str, Halves]


class Base(NamedTuple):
    """A checkpoint with which a timeline began, and of which timeline it is."""

    checkpoint: int
    timeline: int


@dataclass(slots=True)
class Taken:
    """A checkpoint that was asked for; ``number`` is None if nobody knows what became of it."""

    invoked: int
    number: int | None = None


@dataclass(slots=True)
class History:
    """What happened; filled in while it does."""

    pushes: list[Push] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    checkpoints: list[Taken] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _moments: Iterable[int] = field(default_factory=count)

    def moment(self) -> int:
        """Return a number greater than all before it."""
        return next(iter(self._moments))

    def push(self, tensors: Iterable[str], timeline: int) -> Push:
        """A push is about to be sent; its outcome is unknown until ``end``."""
        push = Push(len(self.pushes), tuple(tensors), timeline, self.moment())
        self.pushes.append(push)
        return push

    def end(self, push: Push, outcome: Outcome) -> None:
        """Its client was told what became of a push."""
        push.ended, push.outcome = self.moment(), outcome

    def pulled(self, timeline: int, invoked: int, values: Mapping[str, Array]) -> None:
        """A pull that was sent at ``invoked`` was answered."""
        seen = {}
        for name, array in values.items():
            try:
                seen[name] = marks(array)
            except ValueError as error:
                self.wrong.append(f"a pull of {name}: {error}")
        self.pulls.append(Pull(timeline, invoked, self.moment(), seen))

    def take(self) -> Taken:
        """A checkpoint is about to be asked for."""
        taken = Taken(self.moment())
        self.checkpoints.append(taken)
        return taken

    def outcomes(self) -> Outcomes:
        """Return what became of each push, for ``vacuous``."""
        numbers: dict[Outcome, set[int]] = {"acknowledged": set(), "failed": set(), "unknown": set()}
        for push in self.pushes:
            numbers[push.outcome].add(push.number)
        return Outcomes(numbers["acknowledged"], numbers["failed"], numbers["unknown"])


def log_violations(history: History, final: Mapping[str, Array]) -> list[str]:
    """Say what is wrong if nothing may ever be lost; nothing if all is well.

    Every acknowledged push is in the final state exactly once, a failed one is not, an unknown one once or
    not at all, on each shard. A pull sees what was acknowledged before it was asked for, and nothing of what
    failed or was not yet pushed.
    """
    states = _final_states(history, final)
    found = [*history.wrong, *states.wrong]
    for tensor, halves in states.halves.items():
        for half in halves:
            found += _wrong_in(half, _of(history.pushes, tensor), f"{tensor}, in the end")
    for pull in history.pulls:
        found += _wrong_pull(pull, history.pushes)
    return _shortened(found)


def snapshot_violations(
    history: History, final: Mapping[str, Array], bases: Mapping[int, Base | None]
) -> list[str]:
    """Say what is wrong if the cluster goes back to checkpoints; nothing if all is well.

    Args:
        history: what happened.
        final: the tensors in the end.
        bases: each timeline's checkpoint from which it began; None: from nothing.

    The final state is what the last timeline did to the checkpoint from which it began, which is a moment of
    an earlier timeline, and so on. A moment is a cut: of each push all shards have all or nothing; what was
    acknowledged before the checkpoint was asked for is there; with a push also all that was acknowledged
    before that was sent. Timelines from no checkpoint of which any other began are gone altogether.
    """
    states = _final_states(history, final)
    found = [*history.wrong, *states.wrong]
    line = _lineage(history, bases)
    for tensor, halves in states.halves.items():
        for timeline in {push.timeline for push in history.pushes}:
            pushes = [push for push in _of(history.pushes, tensor) if push.timeline == timeline]
            found += _wrong_timeline(tensor, halves, pushes, line.get(timeline, "gone"))
    found += _wrong_causes(history, states.halves, line)
    last = max(line)
    for pull in history.pulls:
        found += _wrong_pull(pull, [push for push in history.pushes if push.timeline == pull.timeline])
    if any(push.timeline > last for push in history.pushes):
        found.append(f"the last timeline known is {last}, and pushes are of later ones")
    return _shortened(found)


# --- pieces of the above


@dataclass(slots=True)
class _States:
    halves: dict[str, Halves] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def _final_states(history: History, final: Mapping[str, Array]) -> _States:
    states = _States()
    for tensor, values in final.items():
        try:
            states.halves[tensor] = marks(values)
        except ValueError as error:
            states.wrong.append(f"{tensor}, in the end: {error}")
            continue
        known = {push.number for push in _of(history.pushes, tensor)}
        states.wrong += [
            f"{tensor}[{number}]: never pushed" for half in states.halves[tensor] for number in half - known
        ]
    return states


def _of(pushes: Iterable[Push], tensor: str) -> list[Push]:
    return [push for push in pushes if tensor in push.tensors]


def _wrong_in(half: frozenset[int], pushes: Iterable[Push], where: str) -> list[str]:
    """Hold one half of a state against all that was pushed to it before."""
    found = []
    for push in pushes:
        if push.outcome == "acknowledged" and push.number not in half:
            found.append(f"{where}: push {push.number} was acknowledged, and is lost")
        elif push.outcome == "failed" and push.number in half:
            found.append(f"{where}: push {push.number} failed, and was applied")
    return found


def _wrong_pull(pull: Pull, pushes: Sequence[Push]) -> list[str]:
    found = []
    for tensor, (front, back) in pull.seen.items():
        to_it = _of(pushes, tensor)
        due = {push.number for push in to_it if push.acknowledged_before(pull.invoked)}
        never = {push.number for push in to_it if push.outcome == "failed" or push.invoked > pull.ended}
        where = f"a pull of {tensor} at {pull.invoked}"
        found += [f"{where} does not see acknowledged push {one}" for one in sorted(due - (front & back))]
        found += [f"{where} sees push {one}" for one in sorted(never & (front | back))]
    return found


_Cut = Taken | Literal["kept", "gone"]
"""How much of a timeline is in the final state: as much as a checkpoint, all, or nothing."""


def _lineage(history: History, bases: Mapping[int, Base | None]) -> dict[int, _Cut]:
    """Return how much of each timeline is in the final state; those not named are gone."""
    timeline = max(bases)
    line: dict[int, _Cut] = {timeline: "kept"}
    while (base := bases.get(timeline)) is not None:
        timeline = base.timeline
        if timeline in line:
            raise ValueError(f"checkpoint {base.checkpoint} is of timeline {timeline}, which began from it")
        line[timeline] = _checkpoint(history, base)
    return line


def _checkpoint(history: History, base: Base) -> Taken:
    """Return a checkpoint; one whose number nobody was told may be any that was not answered."""
    for taken in history.checkpoints:
        if taken.number == base.checkpoint:
            return taken
    before = [one for one in history.checkpoints if one.number is not None and one.number < base.checkpoint]
    earliest = max((one.invoked for one in before), default=-1)
    unanswered = [one for one in history.checkpoints if one.number is None and one.invoked > earliest]
    if not unanswered:
        raise ValueError(f"checkpoint {base.checkpoint} was never asked for")
    return unanswered[0]


def _wrong_timeline(tensor: str, halves: Halves, pushes: Sequence[Push], cut: _Cut) -> list[str]:
    if cut == "kept":
        return [wrong for half in halves for wrong in _wrong_in(half, pushes, f"{tensor}, in the end")]
    numbers = {push.number for push in pushes}
    front, back = halves[0] & numbers, halves[1] & numbers
    found = [f"{tensor}: of push {number} one shard has one half only" for number in sorted(front ^ back)]
    if cut == "gone":
        return found + [f"{tensor}: push {one} is of a timeline that is gone" for one in sorted(front | back)]
    for push in pushes:
        if push.acknowledged_before(cut.invoked) and push.number not in front:
            found.append(f"{tensor}: {push} was acknowledged before {cut}, and is lost")
        if push.outcome == "failed" and push.number in front:
            found.append(f"{tensor}: {push} failed, and was applied")
    return found


def _wrong_causes(history: History, halves: Mapping[str, Halves], line: Mapping[int, _Cut]) -> list[str]:
    """Look for pushes that came before others of a cut, as seen by their clients, and are not in it."""
    found = []
    for timeline, cut in line.items():
        if not isinstance(cut, Taken):
            continue
        pushes = [push for push in history.pushes if push.timeline == timeline]
        inside = [push for push in pushes if _is_in(push, halves)]
        latest = max(inside, key=lambda push: push.invoked, default=None)
        if latest is None:
            continue
        found += [
            f"{push} was acknowledged before {latest}, which is in {cut}, and is lost"
            for push in pushes
            if push.acknowledged_before(latest.invoked) and not _is_in(push, halves)
        ]
    return found


def _is_in(push: Push, halves: Mapping[str, Halves]) -> bool:
    return any(push.number in halves[tensor][0] for tensor in push.tensors if tensor in halves)


def _shortened(found: list[str]) -> list[str]:
    more = len(found) - _MOST_NAMED
    return [*found[:_MOST_NAMED], f"and {more} more"] if more > 0 else found
