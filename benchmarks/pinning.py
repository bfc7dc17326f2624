"""Client and server on a core each, for figures of a few microseconds.

Left alone, the scheduler sometimes puts both on one core, where a round trip takes a quarter of the time
because nobody has to be woken on another; a real client is on another machine. So where small requests are
timed, the client keeps to one core and the servers to the others.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def kept_apart(nbytes: int, below: int = 64 * 1024) -> Iterator[None]:
    """Keep this process and its descendants on different cores while requests are below `below` bytes.

    Larger ones are left alone: their servers may use more than one core. Does nothing on one core.
    """
    cores = sorted(os.sched_getaffinity(0))
    if nbytes >= below or len(cores) < 2:
        yield
        return
    servers = descendants(os.getpid())
    try:
        _pin(os.getpid(), cores[:1])
        for pid in servers:
            _pin(pid, cores[1:])
        yield
    finally:
        for pid in (os.getpid(), *servers):
            _pin(pid, cores)


def _pin(pid: int, cores: Iterable[int]) -> None:
    # A thread or process may end at any time.
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, at any depth."""
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found
