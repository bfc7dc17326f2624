"""Who is let in: how many connections there may be, in all, of strangers and from one address.

A stranger is who has not said hello yet, or not proven who it is. Strangers wait in the order in which they
came; where there is no room, a newcomer takes the place of the one that has waited longest. An honest client
is a stranger for two round trips, so a flood of silent ones turns over without keeping it out.

A few places are kept beyond the limit, for operators and for other servers: whoever stands on one may do
what those do, and nothing else.

An address of which too many hellos fail is shut out for a while. This machine's own addresses are trusted:
they are counted among all, and that is all.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from protocol.daemon.settings import is_loopback

__all__ = ["DoorSettings", "Doors", "Entry"]

G = TypeVar("G", bound=Hashable)

_LOCAL: Final = "127.0.0.1"  # by far the most frequent of them

_REMEMBERED: Final = 4096
"""Addresses with failed hellos that are remembered; those that failed least recently are forgotten first."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How many connections there may be.

    ``kept`` come on top of ``connections``, for operators and servers. Of an address whose hellos have failed
    ``failures`` times within ``period`` seconds nobody is let in for another ``period``. ``trusts_loopback``
    says that this machine's own addresses are not counted by themselves, nor shut out.
    """

    connections: int = 1024
    strangers: int = 512
    per_address: int = 512
    kept: int = 8
    failures: int = 30
    period: float = 60.0
    trusts_loopback: bool = True


@dataclass(frozen=True, slots=True)
class Entry(Generic[G]):
    """What becomes of a newcomer.

    It is ``refused`` for a reason, or let in, on one of the ``kept`` places or not, ``instead_of`` another.
    """

    refused: str = ""
    kept: bool = False
    instead_of: G | None = None


@dataclass(slots=True)
class _Failures:
    """The failed hellos of an address since its ``period`` began, and until when it is shut out."""

    began: float
    count: int = 0
    shut_until: float = 0.0


class Doors(Generic[G]):
    """The connections of a server that are open, as guests.

    Args:
        settings: how many there may be.
    """

    def __init__(self, settings: DoorSettings) -> None:
        self._settings = settings
        self._guests: dict[G, str] = {}  # and the address of each
        self._strangers: dict[G, None] = {}  # in the order in which they came
        self._kept: set[G] = set()
        self._by_address: Counter[str] = Counter()
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def enter(self, guest: G, host: str, now: float) -> Entry[G]:
        """Say what becomes of a newcomer; unless it is refused, it is a stranger here from now on."""
        address, settings = _address(host), self._settings
        entry: Entry[G] = Entry()
        if self._is_watched(address):
            if self._is_shut(address, now):
                return Entry("shut_out")
            if self._by_address[address] >= settings.per_address:
                return Entry("address")
        if len(self._strangers) >= settings.strangers:
            entry = Entry(instead_of=self._longest())
        elif len(self._guests) - len(self._kept) >= settings.connections:
            entry = self._beyond()
        if entry.refused:
            return entry
        self._guests[guest] = address
        self._by_address[address] += 1
        self._strangers[guest] = None
        if entry.instead_of is not None:
            entry = self._swapped(entry.instead_of)
        if entry.kept:
            self._kept.add(guest)
        return entry

    def _beyond(self) -> Entry[G]:
        """Say who has to go where the limit is reached, or whether there is a place that is kept."""
        if self._strangers:
            return Entry(instead_of=self._longest())
        return Entry(kept=True) if len(self._kept) < self._settings.kept else Entry("connections")

    def _longest(self) -> G:
        return next(iter(self._strangers))

    def _swapped(self, other: G) -> Entry[G]:
        kept = other in self._kept
        self.leave(other)
        return Entry(kept=kept, instead_of=other)

    def greeted(self, guest: G) -> None:
        """Take note that a guest is no stranger any more."""
        self._strangers.pop(guest, None)

    def leave(self, guest: G) -> None:
        """Forget a guest, if it is one."""
        address = self._guests.pop(guest, None)
        if address is None:
            return
        self._strangers.pop(guest, None)
        self._kept.discard(guest)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def failed(self, host: str, now: float) -> bool:
        """Take note of a hello that failed; return whether its address is shut out because of it."""
        address, settings = _address(host), self._settings
        if not self._is_watched(address):
            return False
        found = self._failures.pop(address, None)
        if found is None or now - found.began >= settings.period:
            found = _Failures(now)
        self._failures[address] = found
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)
        found.count += 1
        if found.count != settings.failures:
            return False
        found.shut_until = now + settings.period
        return True

    def _is_watched(self, address: str) -> bool:
        return not (self._settings.trusts_loopback and (address == _LOCAL or is_loopback(address)))

    def _is_shut(self, address: str, now: float) -> bool:
        found = self._failures.get(address)
        return found is not None and now < found.shut_until


def _address(host: str) -> str:
    """Return what counts as one address: of IPv6 the network of 64 bits, all of which one machine may use."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address.is_loopback else str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
