"""Peers that mean harm, or have no manners: what each of them sends, and how long a server bears with it.

They share a process that is nice to all others, so that the server and who is measured beside them have the
processors. No two of them send the same, as far as they send something: each is made of its own number.
"""

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Final, cast

import msgpack
import uvloop

from benchmarks.child_processes import SPAWN, child_process
from protocol.frames import MAGIC, MAX_HEADER, VERSION, encode_prelude
from protocol.messages import REQUESTS, Hello, Pull, Request, Status, encode_request

__all__ = [
    "KINDS",
    "Hostile",
    "HostileFailed",
    "Kind",
    "Outcome",
    "Report",
    "hostile_peers",
    "inputs",
    "shares",
]

TARGET: Final = ("target", "large")
"""Job and tensor that those who read nothing ask for; it should be some megabytes."""

_HELLO_WITHIN: Final = 5.0
_FRAME_WITHIN: Final = 10.0
_AT_ONCE: Final = 0.0
_PATIENCE_SECONDS: Final = 600.0
_MOST_AT_ONCE: Final = 900  # peers that are connected; a flood beside them is more
_TCP_REPAIR: Final = 19

_DTYPES: Final = ("float32", "float64", "int8", "O", "object", "<f4", "")


class HostileFailed(Exception):
    """The process of the peers ended, or did not answer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of peers.

    It sends ``opening(numbers)`` at once and then, if it has a ``drip``, that every second. ``share`` are
    there in 10,000. A server ends the connection within so many seconds: what makes no sense, at once. With
    ``reads`` False it takes no reply; ``vanishes`` says that it goes without a word once it has sent
    everything, and ``leaves`` that it ends the connection by itself.
    """

    share: int
    opening: Callable[[random.Random], bytes]
    within: float = _AT_ONCE
    drip: bytes = b""
    reads: bool = True
    vanishes: bool = False
    leaves: bool = False


def _frame(header: bytes, payload: bytes = b"", announced: int | None = None) -> bytes:
    return encode_prelude(len(header), len(payload) if announced is None else announced) + header + payload


def _asks(request_id: int, request: Request) -> bytes:
    return _frame(encode_request(request_id, request))


def _hello(job: str | None = None) -> bytes:
    return _asks(1, Hello((VERSION,), "hostile", job))


def _nonsense(numbers: random.Random) -> bytes:
    """Return what ends a connection, for it cannot be a frame."""
    return b"\x00" + numbers.randbytes(40)


# --- openings


def _garbage(numbers: random.Random) -> bytes:
    return b"\x00" + numbers.randbytes(numbers.randrange(1, 20_000))


def _http(numbers: random.Random) -> bytes:
    path = numbers.randbytes(numbers.randrange(1, 200)).hex()
    return f"{numbers.choice(['GET', 'POST', 'CONNECT'])} /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def _tls(numbers: random.Random) -> bytes:
    body = numbers.randbytes(numbers.randrange(40, 500))
    return b"\x16\x03\x01" + len(body).to_bytes(2, "big") + b"\x01" + body


def _lies(numbers: random.Random) -> bytes:
    """A prelude that cannot be right."""
    version, flags, header, payload = VERSION, 0, numbers.randrange(0, 4096), 0
    match numbers.randrange(4):
        case 0:
            version = numbers.randrange(2, 1 << 16)
        case 1:
            flags = numbers.randrange(1, 1 << 16)
        case 2:
            header = numbers.randrange(MAX_HEADER + 1, 1 << 32)
        case _:
            payload = numbers.randrange(1, 1 << 64)
    head = MAGIC + version.to_bytes(2, "little") + flags.to_bytes(2, "little")
    return (
        head + header.to_bytes(4, "little") + payload.to_bytes(8, "little") + numbers.randbytes(header % 100)
    )


def _oversized(numbers: random.Random) -> bytes:
    return _hello() + encode_prelude(100, numbers.randrange((1 << 30) + 1, 1 << 63)) + numbers.randbytes(100)


def _bomb(numbers: random.Random) -> bytes:
    """Headers that announce what never comes, nested as deep as there is room."""
    found = [_hello()]
    for _ in range(2):
        announced = numbers.choice(
            [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\x00\x00\x10\x00", b"\x91"]
        )
        depth = numbers.choice([1, 10, 511, 1023, 1025, 10_000])
        begin = numbers.choice(
            [b"", b"\x82\xa2id\x01\xa2op", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
        )
        found.append(_frame((begin + announced * depth)[: MAX_HEADER - 1] + numbers.randbytes(3)))
    return b"".join(found) + _nonsense(numbers)


def _junk(numbers: random.Random) -> object:
    return numbers.choice(
        [
            None, True, -1, 0, 1, 1 << 62, (1 << 64) - 1, float("nan"), float("inf"), "", "w", "../x", "\x00",
            "x" * 300, [], [[]], [["w", numbers.choice(_DTYPES), numbers.randrange(1 << 40)]], {"a": 1},
            [numbers.randrange(1 << 32)] * numbers.randrange(1, 50), numbers.random(), b"bytes",
        ]
    )  # fmt: skip


_FIELDS: Final = sorted({name for cls in REQUESTS for name in cls.__dataclass_fields__})


def _mutated(numbers: random.Random) -> bytes:
    """Requests of every kind with fields of no kind."""
    found = [_hello(numbers.choice([None, "target", "nothing"]))]
    for _ in range(20):
        fields = {numbers.choice(_FIELDS): _junk(numbers) for _ in range(numbers.randrange(6))}
        # Nobody here may stop the others: that takes credentials, which this server does not ask for.
        op = numbers.choice([cls.op for cls in REQUESTS if cls.op not in ("restore", "join_shard", "set")])
        payload = numbers.randbytes(numbers.choice([0, 0, 1, 100, 5000]))
        found.append(_frame(msgpack.packb(fields | {"op": op, "id": numbers.randrange(1 << 30)}), payload))
    return b"".join(found) + _nonsense(numbers)


def _nothing(_: random.Random) -> bytes:
    return b""


def _half_a_hello(numbers: random.Random) -> bytes:
    return _hello()[: numbers.randrange(1, 20)]


def _half_a_frame(numbers: random.Random) -> bytes:
    announced = numbers.randrange(10_000, 1 << 30)
    header = msgpack.packb({"op": "push", "id": numbers.randrange(1 << 30)})
    return _hello("target") + _frame(header, numbers.randbytes(numbers.randrange(5000)), announced)


def _pulls(_: random.Random) -> bytes:
    return _hello(TARGET[0]) + b"".join(_asks(number, Pull((TARGET[1],))) for number in range(2, 40))


def _statuses(_: random.Random) -> bytes:
    return _hello() + b"".join(_asks(number, Status()) for number in range(2, 20_000))


def _only_hello(_: random.Random) -> bytes:
    return _hello()


KINDS: Final[dict[str, Kind]] = {
    "random bytes": Kind(1500, _garbage),
    "HTTP": Kind(700, _http),
    "TLS": Kind(700, _tls),
    "lying preludes": Kind(1000, _lies),
    "oversized payloads": Kind(700, _oversized),
    "msgpack bombs, 2 each": Kind(600, _bomb),
    "mutated requests, 20 each": Kind(1000, _mutated),
    "connect and go": Kind(600, _nothing, leaves=True),
    "a flood of silent ones": Kind(2000, _nothing, _HELLO_WITHIN),
    "hellos byte by byte": Kind(400, _half_a_hello, _HELLO_WITHIN, drip=b"\x00"),
    "frames byte by byte": Kind(300, _half_a_frame, _FRAME_WITHIN, drip=b"x"),
    "replies not read": Kind(180, _pulls, 30.0, reads=False),
    # These are shown out as the others, but learn of it late: what they still have to send waits, too.
    "status replies not read": Kind(20, _statuses, 60.0, reads=False),
    "half-open": Kind(150, _only_hello, 60.0, vanishes=True),
    "silent after the hello": Kind(150, _only_hello, 60.0),
}


def inputs(kind: Kind, count: int) -> set[bytes]:
    """Return the different things that so many peers of a kind send at once."""
    return {kind.opening(random.Random(number)) for number in range(count)}


# --- the peers


@dataclass(frozen=True, slots=True)
class Hostile:
    """So many peers of each kind, for the server at ``address``, that begin within ``over`` seconds.

    ``idle`` and ``write`` are the server's ``--idle-timeout`` and ``--write-timeout``.
    """

    address: tuple[str, int]
    counts: dict[str, int]
    over: float
    idle: float = 60.0
    write: float = 30.0

    def within(self, kind: Kind) -> float:
        """Return how long a server bears with a peer of a kind."""
        return {60.0: self.idle, 30.0: self.write}.get(kind.within, kind.within)


@dataclass(slots=True)
class Outcome:
    """What became of the peers of a kind: ``refused`` at the door, and the seconds that the others lasted.

    ``unfinished`` are still connected.
    """

    peers: int = 0
    refused: int = 0
    unfinished: int = 0
    lasted: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the peers, and the longest that their own process was kept from noticing anything."""

    outcomes: dict[str, Outcome]
    lag: float


@contextmanager
def hostile_peers(hostile: Hostile) -> Iterator[Callable[[], Report]]:
    """Let the peers loose; yield a function that waits until all are gone, and returns what became of them.

    The function raises HostileFailed where their process has ended.
    """
    ours, theirs = SPAWN.Pipe()
    with child_process(_run, hostile, theirs), ours:
        theirs.close()

        def report() -> Report:
            try:
                if ours.poll(_PATIENCE_SECONDS):
                    return cast(Report, ours.recv())
            except (EOFError, ConnectionError) as error:
                raise HostileFailed("the process of the peers ended; its message is above") from error
            raise HostileFailed(f"some peers were not gone within {_PATIENCE_SECONDS:g} s")

        yield report


def _run(hostile: Hostile, parent: Connection) -> None:
    os.nice(19)
    report = uvloop.run(_attack(hostile))
    with suppress(ConnectionError):
        parent.send(report)


async def _attack(hostile: Hostile) -> Report:
    outcomes = {name: Outcome() for name in hostile.counts}
    places = asyncio.Semaphore(_MOST_AT_ONCE)
    numbers = random.Random(1)
    lags = [0.0]
    watching = asyncio.create_task(_watch(lags))
    async with asyncio.TaskGroup() as peers:
        for name, count in hostile.counts.items():
            flood = numbers.uniform(0.3, 0.7) * hostile.over  # all of them in the same moment
            for number in range(count):
                begin = flood if "flood" in name else numbers.uniform(0, hostile.over)
                among = asyncio.Semaphore() if "flood" in name else places
                peer = _Peer(KINDS[name], random.Random(number), hostile, outcomes[name])
                peers.create_task(_after(begin, among, peer))
    watching.cancel()
    return Report(outcomes, max(lags))


async def _watch(lags: list[float]) -> None:
    """Note how late this process comes to what it has to do."""
    while True:
        begin = perf_counter()
        await asyncio.sleep(0.1)
        lags[0] = max(lags[0], perf_counter() - begin - 0.1)


async def _after(seconds: float, places: asyncio.Semaphore, peer: "_Peer") -> None:
    await asyncio.sleep(seconds)
    async with places:
        await peer.attack()


class _Peer(asyncio.Protocol):
    """One of them."""

    def __init__(self, kind: Kind, numbers: random.Random, hostile: Hostile, outcome: Outcome) -> None:
        self._kind = kind
        self._opening = kind.opening(numbers)
        self._hostile = hostile
        self._outcome = outcome
        self._gone = asyncio.get_running_loop().create_future()

    async def attack(self) -> None:
        """Do harm until the server has enough of it."""
        loop = asyncio.get_running_loop()
        self._outcome.peers += 1
        made = socket.socket()
        made.setblocking(False)
        try:
            if not self._kind.reads:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await loop.sock_connect(made, self._hostile.address)
            begin = perf_counter()
            transport, _ = await loop.create_connection(lambda: self, sock=made)
        except OSError:
            self._outcome.refused += 1
            made.close()
            return
        if not self._kind.reads:
            transport.pause_reading()
        transport.write(self._opening)
        if self._kind.leaves:
            transport.close()
            await self._gone
            return
        if self._kind.vanishes:
            await self._vanish(transport)
            return
        await self._last(transport, begin)

    async def _last(self, transport: asyncio.Transport, begin: float) -> None:
        limit = begin + 2 * self._hostile.within(self._kind) + 60.0
        while perf_counter() < limit:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._gone), 1.0)
                self._outcome.lasted.append(perf_counter() - begin)
                return
            if not transport.is_closing():  # who does not read finds out by writing that it was shown out
                transport.write(self._kind.drip or (b"" if self._kind.reads else b"\x00"))
        self._outcome.unfinished += 1
        transport.abort()

    async def _vanish(self, transport: asyncio.Transport) -> None:
        """End without a word to the server, where the system lets one do so: as when the power fails."""
        await asyncio.sleep(1.0)  # a hello has left by then
        made = transport.get_extra_info("socket")
        if made is not None and not transport.is_closing():  # the server has not been faster
            with suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            transport.abort()
        await self._gone

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self._gone.done():
            self._gone.set_result(None)


def shares(total: int, *, without: frozenset[str] = frozenset()) -> dict[str, int]:
    """Return how many peers of each kind make `total`, without some kinds; at least one of each."""
    kinds = {name: kind.share for name, kind in KINDS.items() if name not in without}
    whole = sum(kinds.values())
    return dict(Counter({name: max(1, round(total * share / whole)) for name, share in kinds.items()}))
