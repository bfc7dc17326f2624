"""Mini-batches of what comes: as many examples as fit, or those of a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from psworker.online.records import Record, Stream

__all__ = ["Gathering"]


class Gathering:
    """Reads a stream batch by batch.

    Args:
        stream: is closed by ``close``.
        rows: of a full batch.
        longest: seconds after which a batch that has begun is given out, full or not.
    """

    def __init__(self, stream: Stream, rows: int, longest: float) -> None:
        self._stream = stream
        self._rows = rows
        self._longest = longest
        self._held: list[Record] = []
        self._reading: asyncio.Task[Sequence[Record]] | None = None
        self._ended = False
        self._stopped = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the stream has ended, and all of it was given out."""
        return self._ended and not self._held

    def stop(self) -> None:
        """Have ``batch`` return what there is, then nothing."""
        self._stopped.set()

    async def batch(self) -> list[Record]:
        """Return the next examples; none at the end, or when stopped.

        Raises:
            DataError: the stream cannot be read.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + self._longest if self._held else None
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            while len(self._held) < self._rows and not self._ended and not self._stopped.is_set():
                if self._reading is None:
                    self._reading = asyncio.create_task(self._read())
                timeout = None if due is None else due - loop.time()
                await asyncio.wait(
                    (self._reading, stopped), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                if self._reading.done():
                    reading, self._reading = self._reading, None
                    records = reading.result()
                    self._ended = not records
                    self._held += records
                    due = loop.time() + self._longest if due is None else due
                elif due is not None and loop.time() >= due:
                    break
        finally:
            stopped.cancel()
        batch, self._held = self._held[: self._rows], self._held[self._rows :]
        if self._stopped.is_set():
            self._held = []
        return batch

    async def _read(self) -> Sequence[Record]:
        return await self._stream.read()

    async def close(self) -> None:
        """End what is under way, and close the stream."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._stream.close()
