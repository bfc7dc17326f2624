"""What a faulty network does to one direction of a connection, and the count of what it has done."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["to-upstream", "to-client"]
Direction = Literal["both", "to-upstream", "to-client"]
Scope = Literal["all", "present", "coming"]
WAYS: tuple[Way, ...] = ("to-upstream", "to-client")


@dataclass(frozen=True, slots=True)
class Conditions:
    """The faults of one direction; without arguments there are none.

    Raises:
        ValueError: a number is out of range, with its name and value.
    """

    latency: float = 0.0  # seconds, for every piece
    jitter: float = 0.0  # seconds; up to so much more, drawn for every piece
    rate: float | None = None  # bytes a second
    cut_after: int | None = None  # so many bytes still pass, then both ends are reset
    stalled: bool = False  # nothing passes for now, and nothing is lost
    swallowing: bool = False  # all is read and thrown away

    def __post_init__(self) -> None:
        for name in ("latency", "jitter"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be more than 0 bytes a second, not {self.rate!r}")
        if self.cut_after is not None and self.cut_after < 0:
            raise ValueError(f"cut_after must be 0 or more bytes, not {self.cut_after!r}")

    @property
    def dark(self) -> bool:
        """Whether not even the end of a connection is heard of."""
        return self.stalled or self.swallowing


@dataclass(slots=True)
class Counters:
    """What a proxy has done so far. A test that found nothing wrong asks here whether anything was."""

    connections: int = 0  # accepted
    to_upstream: int = 0  # bytes passed on
    to_client: int = 0  # bytes passed on
    cuts: int = 0  # connections reset by ``cut`` and ``cut_after``
    broken: int = 0  # connections reset by ``heal``, because bytes of theirs had been swallowed
    refused: int = 0  # connections reset as soon as they were accepted; see ``Proxy.refuse``
    refusals: int = 0  # times that ``refuse`` was called
    lost: int = 0  # connections of which one end was reset, or upstream not there: so the other is reset
    delayed: int = 0  # pieces
    throttled: int = 0  # bytes
    held: int = 0  # times that bytes met a stall
    swallowed: int = 0  # bytes
    hidden: int = 0  # times that a stall or a black hole kept the end of a connection from the other side
    duplicated: int = 0  # connections replayed in full
    replayed: int = 0  # bytes of those
    replays_failed: int = 0  # of which upstream did not take all
    changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False, compare=False)

    def add(self, **amounts: int) -> None:
        """Add to the counters of these names, and wake who waits for them."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)
        self.changed.set()

    async def until(self, condition: "Callable[[Counters], bool]") -> None:
        """Return as soon as the condition holds."""
        while not condition(self):
            self.changed.clear()
            await self.changed.wait()
