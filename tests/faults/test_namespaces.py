import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults import namespaces
from tests.faults.namespaces import CommandFailed, Network, PartitionDirection, network
from tests.faults.processes import Child

# Says every datagram that it gets at port 5000, and first that it is there.
LISTENER = """
import socket
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 5000))
print("there", flush=True)
while True:
    print(ear.recv(100).decode(), flush=True)
"""


class Ears:
    """A listener on each machine."""

    def __init__(self, net: Network, machines: int) -> None:
        self.net = net
        self.processes = [self._start(machine) for machine in range(machines)]
        for machine in range(machines):
            assert self.hear(machine) == "there"

    def _start(self, machine: int) -> "subprocess.Popen[Any]":
        return self.net.start(machine, [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True)

    def say(self, source: int, sink: int, word: str) -> None:
        with self.net.inside(source), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(word.encode(), (self.net.addresses[sink], 5000))

    def hear(self, machine: int) -> str:
        """Return the next thing that arrives, whenever it does."""
        stdout = self.processes[machine].stdout
        assert stdout is not None
        line: str = stdout.readline()
        return line.strip()

    def say_in_vain(self, source: int, sink: int) -> None:
        """Say something that is lost; that it never arrives, the next ``hear`` of the sink tells."""
        before = self.net.dropped
        self.say(source, sink, "lost")
        while self.net.dropped == before:
            pass


@pytest.fixture
def ears() -> Iterator[Ears]:
    with network(3) as net:
        yield Ears(net, 3)


def ours() -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"asyncps-{os.getpid()}-*")]


WAYS = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]


def check(ears: Ears, lost: set[tuple[int, int]]) -> None:
    """Check that these ways are cut and all others open."""
    for source, sink in WAYS:
        assert ears.net.loses(source, sink) == ((source, sink) in lost)
        if (source, sink) in lost:
            ears.say_in_vain(source, sink)
    before = ears.net.dropped
    for source, sink in WAYS:
        if (source, sink) not in lost:
            ears.say(source, sink, f"{source} to {sink}")
            assert ears.hear(sink) == f"{source} to {sink}"
    assert ears.net.dropped == before


def test_all_hear_all_until_they_are_parted(ears: Ears) -> None:
    net = ears.net
    assert net.addresses == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    check(ears, set())
    assert net.dropped == 0
    net.partition(0, 1)
    check(ears, {(0, 1), (1, 0)})
    net.partition(1, 2, "a->b")
    check(ears, {(0, 1), (1, 0), (1, 2)})
    net.heal(1, 0)
    check(ears, {(1, 2)})
    net.partition(0, 2, "b->a")
    check(ears, {(1, 2), (2, 0)})
    net.heal()
    check(ears, set())
    net.heal()  # of what is whole: nothing
    assert net.dropped == 2 + 3 + 1 + 2


@pytest.mark.parametrize("direction", ["both", "a->b", "b->a"])
def test_a_tcp_connection_outlasts_a_partition(direction: PartitionDirection) -> None:
    with network(2) as net, ExitStack() as stack:
        with net.inside(1):
            listener = stack.enter_context(socket.create_server((net.addresses[1], 0)))
        with net.inside(0):
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        net.partition(0, 1, direction)
        client.sendall(b"to 1")
        server.sendall(b"to 0")
        while net.dropped < 2:  # of which each was repeated at least, as an end or an acknowledgement is lost
            pass
        net.heal()
        assert server.recv(4, socket.MSG_WAITALL) == b"to 1"
        assert client.recv(4, socket.MSG_WAITALL) == b"to 0"


def test_loopback_is_up_and_each_machine_has_its_own() -> None:
    with network(2) as net, ExitStack() as stack:
        with net.inside(0):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(socket.create_connection(listener.getsockname()))
        with net.inside(1), pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname())


def test_two_networks_do_not_meet() -> None:
    with network(1) as one, network(1) as other:
        assert one.addresses == other.addresses
        with one.inside(0), socket.create_server((one.addresses[0], 0)) as listener:
            address = listener.getsockname()
        with other.inside(0), pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_a_process_is_the_program_itself(ears: Ears) -> None:
    process = ears.processes[0]
    assert Path(f"/proc/{process.pid}/comm").read_text().startswith("python")
    with Child(process.pid) as child:
        child.stop()
        ears.say(1, 0, "while it is stopped")
        child.resume()
        assert ears.hear(0) == "while it is stopped"
    assert process.wait(20) == -signal.SIGKILL


def test_a_command_on_a_machine() -> None:
    with network(2) as net:
        command = net.command(1, ["ip", "-j", "address", "show", "dev", "eth0"])
        (link,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert [address["local"] for address in link["addr_info"]] == ["10.77.0.2"]


def test_nothing_is_left_behind() -> None:
    before = os.readlink("/proc/thread-self/ns/net")

    def fail(started: list["subprocess.Popen[Any]"]) -> None:
        with network(2) as net:
            assert len(ours()) == 3
            # A shell whose child, which nobody knows, would live on.
            shell = net.start(
                0, ["sh", "-c", "sleep 3600 & echo $!; wait"], stdout=subprocess.PIPE, text=True
            )
            assert shell.stdout is not None
            started.append(shell)
            nobodys.append(os.pidfd_open(int(shell.stdout.readline())))
            with net.inside(1):
                raise RuntimeError("a test that fails")

    started: list[subprocess.Popen[Any]] = []
    nobodys: list[int] = []
    with pytest.raises(RuntimeError, match="a test that fails"):
        fail(started)
    assert ours() == []
    assert started[0].returncode == -signal.SIGKILL
    assert select.select(nobodys, [], [], 20)[0] == nobodys
    os.close(nobodys[0])
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_what_a_killed_process_has_left_is_removed() -> None:
    program = """
import os, pathlib, signal
from tests.faults.namespaces import network
with network(1):
    print(len(list(pathlib.Path("/run/netns").glob(f"asyncps-{os.getpid()}-*"))), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with network(1):  # or there is a reason to skip
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        arguments = [sys.executable, "-c", program]
        with subprocess.Popen(
            arguments, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
        ) as killed:
            assert killed.communicate(timeout=60)[0] == "2\n"
        assert killed.returncode == -signal.SIGKILL
    with network(1):
        assert list(Path("/run/netns").glob(f"asyncps-{killed.pid}-*")) == []


def test_a_place_without_namespaces_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "why_not", lambda: "a reason")
    with pytest.raises(pytest.skip.Exception, match="no network namespaces: a reason"), network(1):
        raise AssertionError("there must be none")


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*command: str) -> str:
        raise CommandFailed(f"{command[0]}: Operation not permitted")

    reasons = namespaces.why_not.__wrapped__
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(namespaces, "_run", failing)
    assert reasons() == "ip: Operation not permitted"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert reasons() == "ip is not installed; it is in the package iproute2"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert reasons() == "they need root"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reasons() == "darwin has none"


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="size must be from 1 to 250 machines, not 0"), network(0):
        pass
    with network(2) as net:
        with pytest.raises(ValueError, match="b must be another machine than a, not 1"):
            net.partition(1, 1)
        with pytest.raises(ValueError, match=r"direction must be one of .*, not 'a<-b'"):
            net.partition(0, 1, "a<-b")  # type: ignore[arg-type]
        assert not net.loses(0, 1)
