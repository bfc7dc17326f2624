"""Garbage on the port of a real server costs the others nothing."""

import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.frames import MAGIC, encode_prelude
from protocol.messages import Hello, encode_request
from psctl import LocalCluster
from psworker import Add
from psworker.sync import SyncClient, connect
from tests.integration.scrape import Metrics


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(servers=1) as cluster:
        yield cluster


@pytest.fixture
def bystander(cluster: LocalCluster, tmp_path: Path) -> Iterator[SyncClient]:
    """A client that still has what it had, and can go on, when the test is over."""
    with connect(cluster.address, tmp_path.name) as ps:
        ps.create("w", np.zeros(1000), optimizer=Add())
        yield ps
        ps.push({"w": np.ones(1000)})
        np.testing.assert_array_equal(ps.pull("w"), 1.0)


def send(cluster: LocalCluster, data: bytes) -> bytes:
    """Send ``data`` and return what the server answers until it closes the connection."""
    host, _, port = cluster.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            pass  # the server closed it while we were still sending
        return answer


def hello() -> bytes:
    header = encode_request(1, Hello((1,), "test"))
    return encode_prelude(len(header), 0) + header


def prelude(
    magic: bytes = MAGIC, version: int = 1, flags: int = 0, header: int = 10, payload: int = 0
) -> bytes:
    return struct.pack("<4sHHIQ", magic, version, flags, header, payload)


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"BAD_FRAME"),  # TLS
        (prelude(magic=b"APS\x02"), b""),
        (prelude(version=2), b"VERSION_MISMATCH"),
        (prelude(flags=1), b"BAD_FRAME"),
        (prelude(header=2**32 - 1), b"FRAME_TOO_LARGE"),
        (prelude(payload=2**64 - 1), b"FRAME_TOO_LARGE"),
        (hello() + prelude(payload=2**40), b"FRAME_TOO_LARGE"),
    ],
    ids=["http", "tls", "magic", "version", "flags", "header", "payload", "payload after hello"],
)
def test_what_is_no_frame_ends_the_connection(
    cluster: LocalCluster, bystander: SyncClient, data: bytes, code: bytes
) -> None:
    before = rejected(cluster)
    answer = send(cluster, data)
    assert code in answer
    if not code:
        assert answer == b""
    assert rejected(cluster) == before + 1


def rejected(cluster: LocalCluster) -> float:
    metrics = Metrics(cluster.metrics[0])
    name = "psserver_rejected_frames_total"
    return sum(metrics.value(name, **dict(labels)) for labels in metrics.labels(name))


def test_random_bytes(cluster: LocalCluster, bystander: SyncClient) -> None:
    rng = random.Random(1)
    pid = cluster.servers[0].pid
    before = resident_bytes(pid)
    for _ in range(200):
        send(cluster, b"\x00" + rng.randbytes(rng.randrange(1, 5000)))
    for _ in range(200):  # well-formed frames whose headers are garbage
        header = rng.randbytes(rng.randrange(0, 500))
        send(cluster, hello() + encode_prelude(len(header), 0) + header + prelude(flags=1))
    assert resident_bytes(pid) - before < 50_000_000


def test_announced_payloads_that_never_come_cost_no_memory(
    cluster: LocalCluster, bystander: SyncClient
) -> None:
    host, _, port = cluster.address.rpartition(":")
    pid = cluster.servers[0].pid
    before = resident_bytes(pid)
    connections = []
    try:
        for _ in range(50):
            connection = socket.create_connection((host, int(port)), timeout=30)
            connection.sendall(hello() + encode_prelude(10, 2**30) + bytes(10))
            connections.append(connection)
        bystander.push({"w": np.zeros(1000)})
        assert resident_bytes(pid) - before < 50_000_000
    finally:
        for connection in connections:
            connection.close()
