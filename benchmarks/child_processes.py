"""Child processes that end with the benchmark, however the benchmark ends."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

# A forked child would inherit the threads' locks and the event loops of the systems measured.
SPAWN = multiprocessing.get_context("spawn")

LOOPBACK = "127.0.0.1"


@contextmanager
def child_process(target: Callable[..., None], *arguments: Any, grace: float = 0.0) -> Iterator[SpawnProcess]:
    """Run `target(*arguments)` in a new interpreter for as long as the context lasts.

    On leaving, the child has `grace` seconds to end by itself before it is ended. Ctrl-C reaches
    only the parent, which then leaves the context.
    """
    process = SPAWN.Process(target=_run, args=(target, arguments))
    process.start()
    try:
        yield process
    finally:
        process.join(grace)
        process.terminate()
        process.join(5.0)
        process.kill()
        process.join()


def _run(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target(*arguments)


def exit_with_parent() -> None:
    """End this child at once when its parent is gone, even one that was killed with SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("exit_with_parent: called in a process that has no parent to follow")
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def loopback_listener() -> socket.socket:
    """Return a TCP socket that listens on a free loopback port, to be handed to a child.

    Clients may connect as soon as this returns: the kernel queues them until the child accepts.
    """
    return socket.create_server((LOOPBACK, 0), backlog=1024)
