"""A TCP proxy that does to connections what networks, crashes and middleboxes do to them.

    async with Proxy(server.address) as proxy, connect(proxy.address) as ps:
        proxy.delay(0.01, jitter=0.02)
        proxy.cut_after(1000)                      # in the midst of a frame
        await proxy.until(lambda seen: seen.cuts >= 1)
        proxy.heal()

Nothing but ``until`` blocks. ``direction`` is ``"both"``, ``"to-upstream"`` or ``"to-client"``; ``scope`` is
``"all"`` connections, those ``"present"`` or those ``"coming"``. Where ``one`` is given, one of those
present is drawn with it. ``proxy.seen`` counts what was really done: a fault that met no traffic counts
nothing.
"""

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal, Self, get_args

from protocol.addresses import join_address, split_address
from tests.faults.conditions import WAYS, Conditions, Counters, Direction, Scope, Way
from tests.faults.forwarding import Fate, Forwarded, abort, unconnected

Lasting = Literal["delay", "throttle", "cut-after", "stall", "swallow", "refuse", "duplicate"]

_LOOPBACK: Final = "127.0.0.1"
# How each fault of a pipe is undone; ``refuse`` and ``duplicate`` are none of a pipe.
_HEALED: Final[dict[str, dict[str, Any]]] = {
    "delay": {"latency": 0.0, "jitter": 0.0},
    "throttle": {"rate": None},
    "cut-after": {"cut_after": None},
    "stall": {"stalled": False},
    "swallow": {"swallowing": False},
}


class Proxy:
    """A proxy in front of ``upstream`` (``HOST:PORT``, a numeric IPv4 host), on a free loopback port.

    ``upstream`` may be changed at any time and holds for connections to come: a server that came back
    elsewhere. ``seed`` is for jitter. The first ``record_at_most`` bytes of each connection are kept for
    ``duplicate``. Errors of the proxy itself come out at the end.
    """

    def __init__(self, upstream: str, *, seed: int = 0, record_at_most: int = 64 << 20) -> None:
        self.upstream = upstream
        self.seen = Counters()
        self._rng = random.Random(seed)
        self._record_at_most = record_at_most
        self._coming: dict[Way, Conditions] = dict.fromkeys(WAYS, Conditions())
        self._connections: dict[asyncio.Task[None], Forwarded] = {}
        self._replays: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._listening = False
        self._resetting = False

    @property
    def address(self) -> str:
        """Where clients connect, ``HOST:PORT``."""
        return join_address(*self._reservation.getsockname())

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def until(self, condition: Callable[[Counters], bool]) -> None:
        """Return as soon as the condition holds for what was seen; say ``asyncio.timeout`` for a limit."""
        await self.seen.until(condition)

    def cut(self, *, one: random.Random | None = None) -> int:
        """Reset all present connections (or one), whatever is under way; return how many."""
        chosen = self._chosen(one)
        for task in chosen:
            self._end(task, "cuts")
        return len(chosen)

    def cut_after(
        self, count: int, direction: Direction = "to-upstream", scope: Scope = "present",
        *, one: random.Random | None = None,
    ) -> None:  # fmt: skip
        """Reset each connection (or one) when exactly ``count`` more bytes have arrived in that direction.

        Bytes that are just being handed to the kernel, at most 64 KiB, are not among them. In direction
        ``"both"`` each counts by itself.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        if count < 1:
            raise ValueError(f"count must be 1 byte or more, not {count!r}; to cut at once there is cut()")
        if one is None:
            self._change(direction, scope, cut_after=count)
            return
        for task in self._chosen(one):
            for way in _ways(direction):
                self._connections[task].pipes[way].change(cut_after=count)

    def delay(
        self, latency: float, jitter: float = 0.0, direction: Direction = "both", scope: Scope = "all"
    ) -> None:
        """Let each piece arrive ``latency`` to ``latency + jitter`` seconds later, in order.

        Raises:
            ValueError: one of them is negative or infinite.
        """
        self._change(direction, scope, latency=latency, jitter=jitter)

    def throttle(self, rate: float, direction: Direction = "both", scope: Scope = "all") -> None:
        """Pass at most ``rate`` bytes a second on each connection.

        Raises:
            ValueError: ``rate`` is not more than 0, or infinite.
        """
        self._change(direction, scope, rate=rate)

    def stall(self, direction: Direction = "both", scope: Scope = "all") -> None:
        """Keep connections open and let nothing pass, not even their end, until healed; then all arrives.

        That is a network that loses packets for a while: TCP repeats them. At most 64 KiB are read, so beyond
        the kernel's buffers the sender has to wait. New connections are accepted, here and at upstream.
        """
        self._change(direction, scope, stalled=True)

    def swallow(self, direction: Direction = "both", scope: Scope = "all") -> None:
        """Keep connections open, read all and throw it away, until healed.

        A stream with a hole in it cannot go on: ``heal`` resets the connections that have lost bytes.
        """
        self._change(direction, scope, swallowing=True)

    def refuse(self, *, after_accept: bool = False) -> None:
        """Refuse new connections, as if nobody listened, until healed.

        With ``after_accept`` they are accepted and reset at once, which is counted in ``refused``; the others
        are refused by the kernel, which tells nobody.
        """
        self.seen.add(refusals=1)
        self._resetting = after_accept
        if not after_accept and self._listening:
            self._stop_listening()

    def duplicate(self, *, one: random.Random | None = None, stay: bool = True) -> int:
        """Send all that the client of each present connection (or of one) has sent so far once more.

        It goes over a second connection, whose replies are thrown away. With ``stay`` that connection lasts
        until it is healed or the upstream ends it, else it is closed after its last byte.
        ``seen.duplicated`` counts it when all was sent. Return how many replays were begun; a connection on
        which nothing was sent is not replayed.
        """
        sent = [bytes(self._connections[task].recorded) for task in self._chosen(one)]
        for recorded in filter(None, sent):
            replay = self._loop.create_task(self._replay(recorded, stay))
            self._replays.add(replay)
            replay.add_done_callback(self._replay_ended)
        return sum(map(bool, sent))

    def heal(self, *faults: Lasting) -> None:
        """End these faults, or all; of replays, end those that stay."""
        for fault in faults or get_args(Lasting):
            if fault == "refuse":
                self._accept_again()
            elif fault == "duplicate":
                self._end_replays()
            else:
                self._change("both", "all", **_HEALED[fault])
        self._break_holed()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # Bound and never listening, it keeps the port while the proxy refuses.
        self._reservation = _bound((_LOOPBACK, 0))
        self._listener = _bound(self._reservation.getsockname())
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening:
            self._loop.remove_reader(self._listener)
        self._listener.close()
        self._reservation.close()
        left = [*self._connections, *self._replays]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._failures:
            raise BaseExceptionGroup("in the proxy itself", self._failures)

    def _listen(self) -> None:
        self._listener.listen(1024)
        self._loop.add_reader(self._listener, self._accept)
        self._listening = True

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listening = False

    def _accept_again(self) -> None:
        self._resetting = False
        if not self._listening:
            self._listen()

    def _end_replays(self) -> None:
        for replay in self._replays:
            replay.cancel()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # who knocked has gone again
        if self._resetting:
            abort(client)
            self.seen.add(refused=1)
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forwarded = Forwarded(
            client, split_address(self.upstream), self._coming, self.seen, self._rng, self._record_at_most
        )
        task = self._loop.create_task(forwarded.run())
        self._connections[task] = forwarded
        task.add_done_callback(self._ended)
        self.seen.add(connections=1)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which never runs if it is cancelled before its first step.
        self._connections.pop(task).close()
        self._note_failure(task)

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        self._replays.discard(task)
        self._note_failure(task)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    def _end(self, task: asyncio.Task[None], fate: Fate) -> None:
        self._connections[task].fate = fate
        task.cancel()

    def _chosen(self, one: random.Random | None) -> list[asyncio.Task[None]]:
        there = list(self._connections)
        return there if one is None or not there else [one.choice(there)]

    def _change(self, direction: Direction, scope: Scope, **fields: Any) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {get_args(Scope)}, not {scope!r}")
        for way in _ways(direction):
            changed = replace(self._coming[way], **fields)
            if scope != "present":
                self._coming[way] = changed
            if scope != "coming":
                for forwarded in self._connections.values():
                    forwarded.pipes[way].change(**fields)

    def _break_holed(self) -> None:
        for task, forwarded in self._connections.items():
            if forwarded.holed and not forwarded.swallowing:
                self._end(task, "broken")

    async def _replay(self, recorded: bytes, stay: bool) -> None:
        try:
            with unconnected() as end:
                await self._loop.sock_connect(end, split_address(self.upstream))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._throw_away(end))
                    await self._loop.sock_sendall(end, recorded)
                    self.seen.add(duplicated=1, replayed=len(recorded))
                    if not stay:
                        end.shutdown(socket.SHUT_WR)
        except* OSError:
            self.seen.add(replays_failed=1)

    async def _throw_away(self, end: socket.socket) -> None:
        try:
            while await self._loop.sock_recv(end, 1 << 16):
                pass
        except ConnectionError:
            return  # upstream ended the replay in its way; whether it took all, sending tells


def _ways(direction: Direction) -> tuple[Way, ...]:
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {get_args(Direction)}, not {direction!r}")
    return WAYS if direction == "both" else (direction,)


def _bound(address: tuple[str, int]) -> socket.socket:
    bound = socket.socket()
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound
