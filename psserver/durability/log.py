"""The update log of one server: what is appended is durable before anybody is told so.

Appending returns at once. A thread writes and syncs what has been appended; what comes while it is at work is
gathered, and written with one write and one sync: group commit (DeWitt et al. 1984). Of an array that changed
several times meanwhile only the latest version is written.

While writing fails, nothing is acknowledged, ``problem`` is set, and it is tried again and again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgpack

from protocol.errors import LogUnwritable
from protocol.events import about
from psserver.durability.log_reader import recover
from psserver.durability.log_writer import LogWriter, drop_segments
from psserver.durability.records import Array, Batch, Gathered, Key
from psserver.durability.storage import Storage

__all__ = ["Batch", "UpdateLog", "recover"]

_RETRY: Final = 0.5
"""Seconds until what could not be written is tried again."""

_NOTHING: Final[Mapping[Key, Any]] = {}

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """What has been appended to a segment and is not being written yet."""

    segment: int
    sync: bool = False  # although it is not the time
    gathered: Gathered = field(default_factory=Gathered)
    docs: dict[Key, Callable[[], Any]] = field(default_factory=dict)
    then: list[Callable[[], None]] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return self.sync or bool(self.docs) or bool(self.gathered)


class UpdateLog:
    """A log that is being written. All methods belong to the event loop, and none of them blocks.

    Args:
        storage: where it is.
        directory: its directory there.
        sync: 0: what is acknowledged is synced; otherwise the seconds between two syncs, and what is
            acknowledged is written.
        observe_sync: is told how many seconds each sync took.
        retry: seconds until what could not be written is tried again.

    Attributes:
        failures: how often writing has failed.
        position: bytes of records that were written since the log began.
    """

    def __init__(
        self,
        storage: Storage,
        directory: str,
        *,
        sync: float,
        observe_sync: Callable[[float], None],
        retry: float = _RETRY,
    ) -> None:
        self.failures = 0
        self.position = 0
        self._storage = storage
        self._directory = directory
        self._place = f"{storage.root}/{directory}"
        self._sync_every = sync
        self._observe_sync = observe_sync
        self._retry_after = retry
        self._pack: Callable[[Any], bytes] = msgpack.Packer().pack
        self._thread = ThreadPoolExecutor(1, "update-log")
        self._writer: LogWriter | None = None
        self._gathering = _Waiting(0)
        self._queue = deque([self._gathering])  # one for each segment, the last is ``_gathering``
        self._scheduled = False  # the thread is at work, or will soon be if there is any
        self._due: deque[Callable[[], None]] = deque()
        self._dropped = self._drop_below = self._begun = 0  # segments
        self._trouble = ""
        self._sync_timer: asyncio.TimerHandle | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[None] | None = None
        self._impatient: list[asyncio.Future[None]] = []  # flushes that are not to wait for room
        self._tries_left = 1  # when it is closed: a failed sync can be made good in another file
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def problem(self) -> LogUnwritable | None:
        """Why nothing can be made durable now; None if it can, as far as is known."""
        if not self._trouble:
            return None
        return LogUnwritable(
            f"the update log cannot be written: {self._trouble}; make room on its disk, or mend it. "
            "The server tries again by itself",
            field="update log",
            value=self._place,
        )

    def begin(self, segment: int, position: int, log_id: int) -> None:
        """Be ready to go on where ``recover`` ended. May be called by any thread, before all else.

        Args:
            segment: the number of the first segment.
            position: where the stream stands.
            log_id: the log's.
        """
        self._writer = LogWriter(self._storage, self._directory, position, log_id)
        self.position = position
        self._gathering.segment = segment

    def append(
        self,
        events: Iterable[Any] = (),
        *,
        arrays: Mapping[Key, tuple[Any, Array]] = _NOTHING,
        docs: Mapping[Key, Callable[[], Any]] = _NOTHING,
        then: Callable[[], None] | None = None,
        sync: bool = False,
    ) -> None:
        """Append events, documents and arrays, all or nothing of them.

        Args:
            events: msgpack-able values.
            arrays: a msgpack-able info and a 1-d contiguous array for each key; the array must not change.
            docs: for each key what returns a msgpack-able document; it is called when that is written.
            then: called, in the order of appending, when all this is durable; written, if the log's own
                ``sync`` is not 0.
            sync: it is synced before ``then`` is called, whatever the log's own ``sync`` is.

        Raises:
            TypeError, ValueError, OverflowError: an event or info is not msgpack-able; nothing is appended.
        """
        pack = self._pack
        packed = [pack(event) for event in events]
        waiting = self._gathering
        if arrays:
            entries = {key: (pack((key, info)), array) for key, (info, array) in arrays.items()}
            waiting.gathered.arrays.update(entries)
        waiting.gathered.events += packed
        if docs:
            waiting.docs.update(docs)
        if then is not None:
            waiting.then.append(then)
        waiting.sync = waiting.sync or sync
        if not self._scheduled:
            self._wake()

    def when_durable(self, then: Callable[[], None]) -> None:
        """Call ``then`` when all that was appended is durable (or written); at once if it is."""
        if self._scheduled or self._due:
            self.append(then=then)
        else:
            then()

    def rotate(self) -> int:
        """Return the number of a new segment, into which everything goes that is appended from now on.

        It is there for sure after the next ``flush``: a checkpoint that needs it must not be complete before.
        """
        self._close_docs(self._gathering)
        self._gathering.sync = True  # a segment is begun when all before it is durable
        self._gathering = _Waiting(self._gathering.segment + 1, sync=True)
        self._queue.append(self._gathering)
        self._wake()
        return self._gathering.segment

    def drop_before(self, segment: int) -> None:
        """Remove the segments below ``segment`` as soon as that one is there. May be called by any thread."""
        self._drop_below = max(self._drop_below, segment)
        if self._loop is not None and self._closing is None:
            self._loop.call_soon_threadsafe(self._wake)

    async def flush(self, *, at_once: bool = False) -> None:
        """Return when all that was appended so far would survive a power failure.

        Raises:
            LogUnwritable: it cannot be made durable now, and it was to be done ``at_once``.
            RuntimeError: the log is closed.
        """
        if self._closing is not None:
            raise RuntimeError("the update log is closed")
        if self.problem is not None and at_once:
            raise self.problem
        durable = asyncio.get_running_loop().create_future()
        if at_once:
            self._impatient.append(durable)
        self._gathering.sync = True
        self.append(then=partial(_resolve, durable))
        await durable

    async def close(self) -> None:
        """Make durable what was appended, and end.

        What is appended later is neither written nor acknowledged.

        Raises:
            LogUnwritable: some of it cannot be written, and was not acknowledged.
        """
        if self._closing is not None or self._writer is None:
            return
        if self._loop is None:
            self._thread.shutdown()  # nothing has been appended
            return
        self._closing = asyncio.get_running_loop().create_future()
        self._gathering.sync = True
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._work()
        else:
            self._wake()
        try:
            await self._closing
            await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.close)
        finally:
            self._thread.shutdown(wait=False)
            if self._sync_timer is not None:
                self._sync_timer.cancel()
        if self.problem is not None:
            raise self.problem

    # --- the event loop's side of writing

    def _wake(self) -> None:
        """See soon to what there is to do: all that is appended in this turn of the loop is one batch."""
        if not self._scheduled:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._work)
            self._scheduled = True

    def _work(self) -> None:
        """Give the thread, which is idle, what there is to do."""
        if self._writer is None:
            raise RuntimeError("the update log has not been begun")
        self._retry_timer = None
        waiting = self._queue[0]
        if waiting.has_work or min(self._drop_below, self._begun) > self._dropped:
            self._start(waiting)
        else:
            self._due += waiting.then
            waiting.then = []
            self._scheduled = self._closing is not None
            if self._closing is not None:
                _resolve(self._closing)
        self._acknowledge()

    def _start(self, waiting: _Waiting) -> None:
        try:
            self._close_docs(waiting)
        except Exception as error:  # a defect of the caller: it must not end the log
            self._failed(waiting.segment, [], error)
            return
        if waiting is self._gathering:
            self._gathering = self._queue[0] = _Waiting(waiting.segment)
        else:
            self._queue.popleft()
        sync = waiting.sync or not self._sync_every
        future = self._thread.submit(self._write, waiting.segment, waiting.gathered, sync=sync)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._written, waiting, done))

    def _close_docs(self, waiting: _Waiting) -> None:
        docs = {key: self._pack((key, document())) for key, document in waiting.docs.items()}
        waiting.gathered.docs.update(docs)
        waiting.docs = {}

    def _written(self, waiting: _Waiting, done: Future[float | None]) -> None:
        error = done.exception()
        if error is not None:
            self._failed(waiting.segment, waiting.then, error)
            return
        if self._trouble:
            _log.warning(
                "the update log in %s can be written again", self._place, extra=about("log.writable")
            )
            self._trouble = ""
        seconds = done.result()
        if seconds is not None:
            self._observe_sync(seconds)
        self._begun = waiting.segment
        self._due += waiting.then
        self._impatient = [durable for durable in self._impatient if not durable.done()]
        self._look_at_writer()
        self._work()  # before anybody is told, so that the disk has something to do meanwhile

    def _look_at_writer(self) -> None:
        assert self._writer is not None  # noqa: S101 (begun)
        self.position = self._writer.position
        if not self._writer.is_durable and self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(self._sync_every, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._gathering.sync = True
        self._wake()

    def _failed(self, segment: int, then: list[Callable[[], None]], error: BaseException) -> None:
        """Keep what waits for what could not be written, and see to it that it is tried again."""
        self.failures += 1
        if not self._trouble:
            defect = None if isinstance(error, OSError) else error
            _log.error(
                "the update log in %s cannot be written: %s; updates are refused until it can",
                self._place,
                error,
                exc_info=defect,
                extra=about("log.unwritable"),
            )
        self._trouble = str(error) or type(error).__name__
        impatient, self._impatient = self._impatient, []
        for durable in impatient:
            if not durable.done():
                durable.set_exception(self.problem or error)
        if self._queue[0].segment != segment:
            self._queue.appendleft(_Waiting(segment))
        self._queue[0].sync = True
        self._queue[0].then[:0] = then
        loop = asyncio.get_running_loop()
        if self._closing is None:
            self._retry_timer = loop.call_later(self._retry_after, self._work)
        elif self._tries_left:
            self._tries_left -= 1
            loop.call_soon(self._work)
        else:
            _resolve(self._closing)

    def _acknowledge(self) -> None:
        while self._due:
            then = self._due.popleft()
            try:
                then()
            except Exception as error:  # the others are to be told all the same
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "what waited for the update log failed", "exception": error}
                )

    # --- the thread's side

    def _write(self, segment: int, gathered: Gathered, *, sync: bool) -> float | None:
        assert self._writer is not None  # noqa: S101 (begun)
        try:
            return self._writer.commit(segment, gathered, sync=sync)
        finally:  # it may make room for what could not be written
            drop = min(self._drop_below, self._begun)
            if drop > self._dropped:
                self._dropped = drop
                self._drop(drop)

    def _drop(self, below: int) -> None:
        try:
            drop_segments(self._storage, self._directory, below)
        except OSError as error:
            _log.warning("old segments in %s stay for now: %s", self._place, error)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
