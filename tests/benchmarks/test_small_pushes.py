import os
from functools import partial

import pytest

from benchmarks.small_pushes import Load, LoadFailed, LoadResult, cpu_seconds, run_load
from benchmarks.systems.uvloop_echo import echo_server
from tests.benchmarks.processes import all_ended, spawned_by

FRAME = bytes(1000)


def numbered_frame(size: int, connection: int, number: int) -> bytes:
    """A frame that no other connection or request has; the greeting is shorter."""
    head = connection.to_bytes(4) + number.to_bytes(4)
    return head.ljust(size if number else 100, b".")


def count_numbered(size: int, received: bytes) -> int:
    """Count one reply, and fail where it is not all of one."""
    number = int.from_bytes(received[4:8])
    return int(len(received) == (size if number else 100))


def test_same_frame_each_time() -> None:
    with echo_server() as server:
        load = Load(server.address, server.pid, request=FRAME, reply=len(FRAME))
        result = run_load(load, connections=16, seconds=0.2)
        processes = spawned_by(os.getpid())
    assert result.pushes > 0
    assert result.seconds > 0
    assert result.server_cpu_seconds >= 0
    assert len(processes) == 1
    assert all_ended(processes)


def test_frames_made_for_each_request_after_a_greeting_of_another_size() -> None:
    # Larger than a single read, so that replies come in parts.
    size = 1_000_000
    with echo_server() as server:
        load = Load(
            server.address,
            server.pid,
            request=partial(numbered_frame, size),
            reply=partial(count_numbered, size),
        )
        assert run_load(load, connections=3, seconds=0.2).pushes > 0


def test_server_that_is_not_there_is_an_error() -> None:
    with echo_server() as server:
        pass
    load = Load(server.address, os.getpid(), request=FRAME, reply=len(FRAME))
    with pytest.raises(LoadFailed, match=r"[Cc]onnect"):
        run_load(load, connections=1, seconds=0.1)


def test_rates() -> None:
    result = LoadResult(pushes=300, seconds=2.0, server_cpu_seconds=1.5)
    assert result.pushes_per_second == 150.0
    assert result.pushes_per_cpu_second == 200.0


def test_cpu_time_of_this_process_is_what_the_kernel_counts() -> None:
    times = os.times()
    assert cpu_seconds(os.getpid()) == pytest.approx(times.user + times.system, abs=0.1)
