"""An event loop in a thread of its own, for those who call from code without ``await``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from protocol.errors import ConnectionLost

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        try:
            import uvloop  # noqa: PLC0415 (absent on some platforms)
        except ImportError:
            self.loop = asyncio.new_event_loop()
        else:
            self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="asyncps", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` and return its result; an interrupt in the caller's thread cancels it.

        Raises:
            ConnectionLost: the with-block has ended.
        """
        if self.loop.is_closed():
            work.close()
            raise ConnectionLost("the connection was closed at this end")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread when all that was interrupted has cleaned up."""
        asyncio.run_coroutine_threadsafe(_others_end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _others_end() -> None:
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
