"""The server that estimators have where nobody names a cluster: one process, begun when it is first needed.

The jobs that ``partial_fit`` may go on with gather there. It is nobody else's server: once nobody trains on
it, and much has gathered, it is ended, and the next to come begins another.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

__all__ = ["has_ended", "own_address"]

_MOST: Final = 256 * 1024 * 1024
"""Bytes of jobs that were kept, at which the server is ended."""


class _OwnServer:
    """At most one server, and what is known of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cluster: Any = None
        self._process = 0
        self._users = 0
        self._held = 0
        self.ended: set[str] = set()

    @contextmanager
    def address(self, nbytes: int) -> Iterator[str]:
        with self._lock:
            if self._process != os.getpid():  # what was forked has a server of its own
                self._cluster, self._process, self._users = None, os.getpid(), 0
            if self._cluster is None:
                with ThreadPoolExecutor(1) as thread:  # from here it leaves the process's signals alone
                    self._cluster, self._held = thread.submit(_started).result(), 0
            self._users += 1
            address = str(self._cluster.address)
            self.ended.discard(address)
        try:
            yield address
        finally:
            with self._lock:
                self._users -= 1
                self._held += nbytes
                if not self._users and self._held > _MOST:
                    self.stop()

    def stop(self) -> None:
        if self._cluster is not None and self._process == os.getpid():
            cluster, self._cluster = self._cluster, None
            self.ended.add(str(cluster.address))
            cluster.stop()


_server = _OwnServer()
atexit.register(_server.stop)


def own_address(nbytes: int) -> AbstractContextManager[str]:
    """Return a context in which there is a server of this process's own; it gives the address.

    Args:
        nbytes: what will be left there.

    Raises:
        ProcessFailed, TimeoutError, OSError: as ``psctl.LocalCluster``, when it cannot be started.
    """
    return _server.address(nbytes)


def has_ended(address: str) -> bool:
    """Return whether a server of this process's own was there, and is no more, nor what was left there."""
    return address in _server.ended


def _started() -> Any:
    from psctl.cluster import LocalCluster  # noqa: PLC0415 (not needed where a cluster is named)

    return LocalCluster(servers=1).__enter__()
