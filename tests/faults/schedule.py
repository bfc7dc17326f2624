"""Faults drawn from a seed, and a driver that lets them happen.

    schedule = Schedule.random(fault_seed, [CUT, CUT_AFTER, STALL], count=20, over=500, targets=len(proxies))
    fired: list[Fault] = []
    async with asyncio.TaskGroup() as group:
        faults = group.create_task(play(schedule, on_proxies(proxies), progress, fired.append))
        ...                                        # push; progress.advance() for every acknowledged push
        faults.cancel()                            # whatever still lasts is undone
    assert not violations, f"{schedule}\n{violations}"

When a fault begins is counted in progress (or in seconds), but it *lasts* seconds: a fault that stops all
progress would otherwise last for ever.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

from tests.faults.conditions import Direction
from tests.faults.proxy import Proxy

SEED_VARIABLE = "ASYNCPS_FAULT_SEED"


def seed_from(environment: Mapping[str, str]) -> int:
    """Return the seed that the environment asks for, else any.

    Raises:
        ValueError: ``ASYNCPS_FAULT_SEED`` is no integer from 0 on.
    """
    text = environment.get(SEED_VARIABLE, "")
    if not text:
        return random.SystemRandom().randrange(1 << 32)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{SEED_VARIABLE} must be an integer from 0 on, not {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, what, on which target, and how much of it."""

    at: float  # progress, or seconds
    kind: str
    target: int = 0  # which proxy, process, ...
    amount: float = 0.0  # bytes, seconds or bytes a second, as the kind has it
    lasts: float = 0.0  # seconds until it is undone; 0 for what happens in a moment
    direction: Direction = "both"
    draw: int = 0  # seeds the choice among what there will be then, such as connections


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault, and the ranges from which it is drawn.

    Raises:
        ValueError: a range is not 0 <= least <= most.
    """

    name: str
    amount: tuple[float, float] = (0.0, 0.0)  # from a least above 0, by order of magnitude
    lasts: tuple[float, float] = (0.0, 0.0)
    directions: Sequence[Direction] = ("both",)

    def __post_init__(self) -> None:
        for name in ("amount", "lasts"):
            least, most = getattr(self, name)
            if not 0 <= least <= most < math.inf:
                raise ValueError(f"{name} of {self.name} must be 0 <= least <= most, not {(least, most)!r}")


_BOTH_AND_EACH: Sequence[Direction] = ("both", "to-upstream", "to-client")
_EACH: Sequence[Direction] = ("to-upstream", "to-client")

CUT = Kind("cut")
CUT_AFTER = Kind("cut-after", amount=(1, 1e6), directions=_EACH)  # bytes
DELAY = Kind("delay", amount=(0.001, 0.05), lasts=(0.05, 0.5), directions=_BOTH_AND_EACH)  # seconds
THROTTLE = Kind("throttle", amount=(1e4, 1e7), lasts=(0.05, 0.5), directions=_BOTH_AND_EACH)  # bytes a second
STALL = Kind("stall", lasts=(0.05, 0.5), directions=_BOTH_AND_EACH)
SWALLOW = Kind("swallow", lasts=(0.05, 0.5), directions=_BOTH_AND_EACH)
REFUSE = Kind("refuse", lasts=(0.05, 0.5))
DUPLICATE = Kind("duplicate", lasts=(0.05, 0.5))
OF_PROXIES = (CUT, CUT_AFTER, DELAY, THROTTLE, STALL, SWALLOW, REFUSE, DUPLICATE)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Faults in the order of ``at``. Its text says the seed that makes it again."""

    seed: int
    faults: tuple[Fault, ...]

    @classmethod
    def random(
        cls,
        seed: int,
        faults: Sequence[Kind],
        count: int,
        over: float,
        targets: int = 1,
        surely: Sequence[Kind] = (),
    ) -> Self:
        """Draw ``count`` faults of these kinds, from 0 to ``over`` (progress or seconds), on so many targets.

        The same arguments give the same schedule. Those of ``surely`` are among them, so that a short
        schedule cannot miss what its test is about.

        Raises:
            ValueError: there is no kind or target to draw, ``count`` or ``over`` is negative, or fewer
                faults are wanted than are to be there surely.
        """
        for name, value, least in (
            ("faults", len(faults), 1),
            ("targets", targets, 1),
            ("count", count, len(surely)),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, not {value!r}")
        if not 0 <= over < math.inf:
            raise ValueError(f"over must be 0 or more, not {over!r}")
        rng = random.Random(seed)
        kinds = [*surely, *(rng.choice(faults) for _ in range(count - len(surely)))]
        drawn = [_draw(rng, kind, over, targets) for kind in kinds]
        return cls(seed, tuple(sorted(drawn, key=lambda fault: fault.at)))

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __len__(self) -> int:
        return len(self.faults)

    def __str__(self) -> str:
        return "\n".join([f"{SEED_VARIABLE}={self.seed}", *(f"  {fault}" for fault in self.faults)])


def _draw(rng: random.Random, kind: Kind, over: float, targets: int) -> Fault:
    return Fault(
        at=rng.uniform(0, over),
        kind=kind.name,
        target=rng.randrange(targets),
        amount=_draw_amount(rng, *kind.amount),
        lasts=rng.uniform(*kind.lasts),
        direction=rng.choice(kind.directions),
        draw=rng.getrandbits(32),
    )


def _draw_amount(rng: random.Random, least: float, most: float) -> float:
    """As many small ones as large ones: 1 byte of a header, or 1 MB into a payload."""
    if least == 0:
        return rng.uniform(least, most)
    return math.exp(rng.uniform(math.log(least), math.log(most)))


Undo = Callable[[], object]
# Lets a fault happen, without waiting; returns how it is undone, if it lasts.
Action = Callable[[Fault], Undo | None]


class Clock(Protocol):
    """In what a schedule's ``at`` is counted."""

    async def reached(self, at: float) -> None:
        """Return as soon as it is ``at`` or later."""


class Progress:
    """A clock that goes on when the test says so, for instance once for every acknowledged push."""

    def __init__(self) -> None:
        self.now = 0.0
        self._advanced = asyncio.Event()

    def advance(self, by: float = 1.0) -> None:
        """Go on; faults that are due happen as soon as the event loop comes to them."""
        self.now += by
        self._advanced.set()

    async def reached(self, at: float) -> None:
        """See ``Clock``."""
        while self.now < at:
            self._advanced.clear()
            await self._advanced.wait()


class Seconds:
    """A clock of seconds since it was made, in a running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    async def reached(self, at: float) -> None:
        """See ``Clock``."""
        await asyncio.sleep(self._began + at - self._loop.time())


async def play(
    schedule: Schedule,
    actions: Mapping[str, Action],
    clock: Clock,
    fired: Callable[[Fault], object] = lambda _: None,
) -> None:
    """Let the faults happen in order, and undo each when it has lasted; return when all is undone.

    Faults may overlap. If this is cancelled, or an action fails, what lasts is undone at once.

    Raises:
        ValueError: a fault of the schedule has no action; none has happened then.
        ExceptionGroup: an action or its undoing has failed.
    """
    if missing := {fault.kind for fault in schedule} - actions.keys():
        raise ValueError(f"actions must have all kinds of the schedule; missing are {sorted(missing)}")
    lasting: dict[int, Undo] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(schedule):
                await clock.reached(fault.at)
                undo = actions[fault.kind](fault)
                fired(fault)
                if undo is not None:
                    lasting[number] = undo
                    group.create_task(_undo_after(fault.lasts, lasting, number))
    finally:
        with contextlib.ExitStack() as stack:  # all of them, even if one fails
            for undo in lasting.values():
                stack.callback(undo)


async def _undo_after(seconds: float, lasting: dict[int, Undo], number: int) -> None:
    await asyncio.sleep(seconds)
    lasting.pop(number)()


def on_proxies(proxies: Sequence[Proxy]) -> dict[str, Action]:
    """Return the actions of ``OF_PROXIES``; add your own kinds: ``{**on_proxies(proxies), "kill": ...}``.

    A fault's target is the number of the proxy. Of two delays, say, that overlap on one proxy, the later one
    replaces the earlier, and whichever ends first ends both.
    """

    def cut(fault: Fault) -> None:
        proxies[fault.target].cut(one=random.Random(fault.draw))

    def cut_after(fault: Fault) -> None:
        one = random.Random(fault.draw)
        proxies[fault.target].cut_after(round(fault.amount), fault.direction, one=one)

    def delay(fault: Fault) -> Undo:
        proxies[fault.target].delay(fault.amount, fault.amount, fault.direction)
        return partial(proxies[fault.target].heal, "delay")

    def throttle(fault: Fault) -> Undo:
        proxies[fault.target].throttle(fault.amount, fault.direction)
        return partial(proxies[fault.target].heal, "throttle")

    def stall(fault: Fault) -> Undo:
        proxies[fault.target].stall(fault.direction)
        return partial(proxies[fault.target].heal, "stall")

    def swallow(fault: Fault) -> Undo:
        proxies[fault.target].swallow(fault.direction)
        return partial(proxies[fault.target].heal, "swallow")

    def refuse(fault: Fault) -> Undo:
        proxies[fault.target].refuse(after_accept=fault.draw % 2 == 1)
        return partial(proxies[fault.target].heal, "refuse")

    def duplicate(fault: Fault) -> Undo:
        proxies[fault.target].duplicate(one=random.Random(fault.draw), stay=fault.draw % 2 == 1)
        return partial(proxies[fault.target].heal, "duplicate")

    return {
        "cut": cut,
        "cut-after": cut_after,
        "delay": delay,
        "throttle": throttle,
        "stall": stall,
        "swallow": swallow,
        "refuse": refuse,
        "duplicate": duplicate,
    }
