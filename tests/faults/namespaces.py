"""Machines that are none: network namespaces on one bridge, between which packets can be lost, also one way.

    with network(3) as net:                                  # skips the test where that is not possible
        server = net.start(0, [sys.executable, "-m", "psserver", "--host", net.addresses[0]])
        with Child(server.pid) as child: ...                 # the pid is the program's own
        with net.inside(1):
            asyncio.run(client(net.addresses[0]))            # sockets of this thread are on machine 1
        net.partition(0, 1, "a->b")                          # 0 hears 1, 1 does not hear 0
        net.heal()
        assert net.dropped > 0

Packets are lost without a word: they are sent to a hardware address at which nobody listens, which needs
nothing of the kernel but namespaces, veth and bridge. No address of the machine itself is touched.
"""

import ctypes
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pytest

PartitionDirection = Literal["both", "a->b", "b->a"]

_DIRECTORY: Final = Path("/run/netns")
_PREFIX: Final = "asyncps"
_MOST: Final = 250
_NOWHERE: Final = "02:00:00:00:00:01"  # a hardware address of nobody
_NO_IPV6: Final = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
_CLONE_NEWNET: Final = 0x40000000


class CommandFailed(Exception):
    """A command that sets up or changes the network has failed, with what it said."""


class Network:
    """Machines 0, 1, ..., each with an address; made by ``network``."""

    def __init__(self, names: Sequence[str], hub: str, stack: ExitStack) -> None:
        self.addresses = [f"10.77.0.{number + 1}" for number in range(len(names))]
        self._names = names
        self._hub = hub
        self._stack = stack

    def command(self, machine: int, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs ``arguments`` on a machine. It *becomes* the program: same pid."""
        return ["ip", "netns", "exec", self._names[machine], *arguments]

    def start(self, machine: int, arguments: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a process on a machine, with the options of ``Popen``; it is killed at the end."""
        process = subprocess.Popen(self.command(machine, arguments), **options)
        self._stack.callback(_end, process)
        return process

    @contextmanager
    def inside(self, machine: int) -> Iterator[None]:
        """Put the calling thread on a machine: its sockets, and those of threads and processes it starts.

        Raises:
            OSError: the kernel does not let it.
        """
        with open("/proc/thread-self/ns/net") as before, open(_DIRECTORY / self._names[machine]) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def partition(self, a: int, b: int, direction: PartitionDirection = "both") -> None:
        """Lose all packets between two machines, or those of one direction, until healed.

        Raises:
            ValueError: the direction is none, or both are the same machine.
        """
        for source, sink in _ways(a, b, direction):
            self._neighbour("replace", source, sink, "lladdr", _NOWHERE, "nud", "permanent")

    def heal(self, a: int | None = None, b: int | None = None) -> None:
        """Let packets through again between two machines; without arguments, between all."""
        machines = range(len(self._names))
        pairs = [(one, two) for one in machines for two in machines if one != two]
        for source, sink in pairs if a is None or b is None else _ways(a, b, "both"):
            if self.loses(source, sink):
                self._neighbour("del", source, sink)

    def loses(self, source: int, sink: int) -> bool:
        """Whether packets from ``source`` to ``sink`` are lost at present."""
        shown = _ip("-n", self._names[source], "neigh", "show", self.addresses[sink], "dev", "eth0")
        return _NOWHERE in shown

    @property
    def dropped(self) -> int:
        """How many packets were lost in partitions so far."""
        (link,) = json.loads(_ip("-n", self._hub, "-s", "-j", "link", "show", "sink"))
        packets: int = link["stats64"]["tx"]["packets"]
        return packets

    def _neighbour(self, verb: str, source: int, sink: int, *what: str) -> None:
        _ip("-n", self._names[source], "neigh", verb, self.addresses[sink], *what, "dev", "eth0")


@contextmanager
def network(size: int) -> Iterator[Network]:
    """Make ``size`` machines that reach each other; skip the test, saying why, where that is not possible.

    All is removed at the end; processes that ``start`` has started are killed. What a test that was itself
    killed has left behind is removed by the next.

    Raises:
        ValueError: ``size`` is not from 1 to 250.
        CommandFailed: it is possible here, and has failed all the same.
    """
    if not 1 <= size <= _MOST:
        raise ValueError(f"size must be from 1 to {_MOST} machines, not {size!r}")
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    _remove_left_behind()
    with ExitStack() as stack:
        yield _build(size, stack)


@functools.cache
def why_not() -> str:
    """Return why there can be no networks here, or nothing: whatever they need is tried."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has none"
    if os.geteuid() != 0:
        return "they need root"
    if missing := [program for program in ("ip", "bridge") if shutil.which(program) is None]:
        return f"{missing[0]} is not installed; it is in the package iproute2"
    try:
        with ExitStack() as stack:
            _build(1, stack)
    except CommandFailed as error:
        return str(error)
    return ""


def _build(size: int, stack: ExitStack) -> Network:
    # The process is named, so that what it leaves behind can be known; the rest keeps its networks apart.
    network_name = f"{_PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    hub = _add_namespace(f"{network_name}-hub", stack)
    _ip("-n", hub, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
    _ip("-n", hub, "link", "set", "bridge", "up")
    _add_sink(hub)
    names = [_add_namespace(f"{network_name}-{number}", stack) for number in range(size)]
    net = Network(names, hub, stack)
    for number, name in enumerate(names):
        _join(hub, name, f"port{number}", net.addresses[number])
    return net


def _add_namespace(name: str, stack: ExitStack) -> str:
    stack.callback(_remove_namespace, name)  # first, for an interruption between the two
    _ip("netns", "add", name)
    # Partitions are of IPv4, so nothing else must pass; and what the bridge said would count as dropped.
    _run("ip", "netns", "exec", name, "sh", "-c", f"test ! -e {_NO_IPV6} || echo 1 > {_NO_IPV6}")
    _ip("-n", name, "link", "set", "lo", "up")
    return name


def _remove_namespace(name: str) -> None:
    """Remove a namespace, and whatever still runs in it: children of started processes, for instance."""
    try:
        for pid in map(int, _ip("netns", "pids", name).split()):
            if pid != os.getpid():
                _kill(pid)
        _ip("netns", "delete", name)
    except CommandFailed:
        if (_DIRECTORY / name).exists():  # else it was never added, or another test run was faster
            raise


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _add_sink(hub: str) -> None:
    """Lead the packets for nobody to a port of the bridge that counts them, and nothing else to it."""
    _ip("-n", hub, "link", "add", "sink", "type", "veth", "peer", "name", "drain")
    _ip("-n", hub, "link", "set", "sink", "master", "bridge")
    _ip("-n", hub, "link", "set", "sink", "type", "bridge_slave",
        "flood", "off", "mcast_flood", "off", "bcast_flood", "off")  # fmt: skip
    for link in ("sink", "drain"):
        _ip("-n", hub, "link", "set", link, "up")
    _run("bridge", "-n", hub, "fdb", "add", _NOWHERE, "dev", "sink", "master", "static")


def _join(hub: str, name: str, port: str, address: str) -> None:
    _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", hub)
    _ip("-n", hub, "link", "set", port, "master", "bridge", "up")
    _ip("-n", name, "address", "add", f"{address}/16", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")


def _ways(a: int, b: int, direction: PartitionDirection) -> list[tuple[int, int]]:
    if a == b:
        raise ValueError(f"b must be another machine than a, not {b!r}")
    if direction not in get_args(PartitionDirection):
        raise ValueError(f"direction must be one of {get_args(PartitionDirection)}, not {direction!r}")
    return {"both": [(a, b), (b, a)], "a->b": [(a, b)], "b->a": [(b, a)]}[direction]


def _remove_left_behind() -> None:
    for path in _DIRECTORY.glob(f"{_PREFIX}-*"):
        named = re.fullmatch(rf"{_PREFIX}-(\d+)-[0-9a-f]{{8}}-(hub|\d+)", path.name)
        if named and not Path(f"/proc/{named[1]}").exists():
            _remove_namespace(path.name)


def _end(process: "subprocess.Popen[Any]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
