"""Which processes a test has started, and whether they have ended."""

import os
import select
from pathlib import Path

_LIMIT_MILLISECONDS = 20_000


def spawned_by(pid: int) -> list[int]:
    """Return process file descriptors of the spawned children of `pid`, and of theirs."""
    return [os.pidfd_open(child) for child in _descendants(pid) if _is_spawned(child)]


def all_ended(pidfds: list[int]) -> bool:
    """Wait until all the processes have ended; False where one has not within the limit."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    running = set(pidfds)
    while running and (ended := poll.poll(_LIMIT_MILLISECONDS)):
        for pidfd, _ in ended:
            poll.unregister(pidfd)
            running.discard(pidfd)
            os.close(pidfd)
    return not running


def _descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [later for child in children for later in _descendants(child)]


def _is_spawned(pid: int) -> bool:
    # The other child of multiprocessing, its resource tracker, ends with the interpreter.
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
