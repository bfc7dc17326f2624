"""Records of a Kafka topic. Who reads which partition, and from where, the cluster says, not the brokers.

Partition i of the topic is chunk i of the job, leased to one worker at a time. Consumer groups and committed
offsets are not used: the offset to go on from is kept with the update that the records before it have led to.
Records of transactions that were not committed are not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from protocol.backoff import Backoff
from protocol.events import about
from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.online.records import Record

__all__ = ["Consumer", "KafkaTopic", "MakeConsumer", "aiokafka_consumer"]

_log = logging.getLogger(__name__)

_LONGEST_POLL: Final = 1000  # milliseconds; it ends sooner if something comes
_MOST: Final = 2000  # records of one poll
_LOOK_EVERY: Final = 2.0  # seconds without a record after which it is asked whether somebody is there
_ANSWER_WITHIN: Final = 5.0  # seconds


class Consumer(Protocol):
    """What is used of ``aiokafka.AIOKafkaConsumer``; see there."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""

    async def topics(self) -> set[str]:
        """Return all topics that there are, and make none."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the numbers of a topic's partitions."""

    def assign(self, partitions: Sequence[Any]) -> None:
        """Read these partitions."""

    def seek(self, partition: Any, offset: int) -> None:
        """Go on from there."""

    async def getmany(
        self, *partitions: Any, timeout_ms: int = 0, max_records: int | None = None
    ) -> Mapping[Any, Sequence[Any]]:
        """Return what has come, waiting for the first."""

    async def beginning_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        """Return the offset of the first record that is kept of each."""

    async def end_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        """Return the offset of the next record of each."""


class MakeConsumer(Protocol):
    """Makes a consumer that has not been started; of all partitions of a topic, or to be assigned some."""

    def __call__(self, server: str, topic: str | None) -> Consumer: ...  # noqa: D102


def aiokafka_consumer(server: str, topic: str | None) -> Consumer:
    """Return aiokafka's consumer.

    Raises:
        DataError: aiokafka is not installed.
    """
    try:
        from aiokafka import AIOKafkaConsumer  # noqa: PLC0415 (an extra)
    except ImportError:
        reason = "Kafka needs aiokafka; pip install 'asyncps[kafka]'"
        raise DataError(f"kafka://{server}", None, reason) from None
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it says ten times a second we say once
    consumer: Consumer = AIOKafkaConsumer(
        *([] if topic is None else [topic]),
        bootstrap_servers=server,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # where the brokers have dropped what comes next
        isolation_level="read_committed",
    )
    return consumer


class _Partition(NamedTuple):
    """As ``aiokafka.TopicPartition``, a tuple of the same fields, whose equal it is."""

    topic: str
    partition: int


class KafkaTopic:
    """A topic; made by ``KafkaTopic.found``."""

    def __init__(self, brokers: _Brokers, topic: str, partitions: int) -> None:
        self.partitions = partitions
        self._brokers = brokers
        self._topic = topic

    @classmethod
    async def found(
        cls, server: str, topic: str, reconnect_for: float, make: MakeConsumer = aiokafka_consumer
    ) -> KafkaTopic:
        """Ask a broker, ``HOST:PORT``, for the topic's partitions.

        Args:
            server: one or several, separated by commas.
            topic: its name.
            reconnect_for: seconds to keep trying while nobody answers, now and later.
            make: makes what asks and reads.

        Raises:
            DataError: nobody answers, or there is no such topic; or its partitions are not 0, 1, 2 ...
        """
        brokers = _Brokers(f"kafka://{server}/{topic}", server, reconnect_for, make)
        await brokers.check(topic)
        found = await brokers.partitions(topic)
        if found != set(range(len(found))):
            expected = f"expected 0 to {len(found) - 1}"
            raise DataError(brokers.name, None, f"its partitions are {sorted(found)}; {expected}")
        return cls(brokers, topic, len(found))

    async def open(self, partition: int, skip: int) -> _KafkaStream:
        """See ``Streams.open``."""
        consumer = await self._brokers.consumer(None)
        place = _topic_partition(self._topic, partition)
        consumer.assign([place])
        consumer.seek(place, skip)
        name = f"{self._brokers.name}, partition {partition}"
        return _KafkaStream(name, consumer, place, skip, self._brokers.reconnect_for)

    async def close(self) -> None:
        """See ``Streams.close``: every stream closes its own consumer."""


class _Brokers:
    """Who has the topic: ``server`` knows the others. ``name`` is for messages."""

    def __init__(self, name: str, server: str, reconnect_for: float, make: MakeConsumer) -> None:
        self.name = name
        self.reconnect_for = reconnect_for
        self._server = server
        self._make = make

    async def check(self, topic: str) -> None:
        """Raise DataError if there is no such topic. Who subscribed to it would have brokers create it."""
        consumer = await self.consumer(None)
        try:
            topics = await consumer.topics()
        except Exception as error:
            raise _failed(self.name, error) from error
        finally:
            await _stop(consumer)
        if topic not in topics:
            reason = "the topic does not exist; create it, or correct [stream] source"
            raise DataError(self.name, None, reason)

    async def partitions(self, topic: str) -> set[int]:
        """Return the numbers of the topic's partitions."""
        consumer = await self.consumer(topic)
        try:
            return consumer.partitions_for_topic(topic) or set()
        finally:
            await _stop(consumer)

    async def consumer(self, topic: str | None) -> Consumer:
        """Return one that has been started, trying again while nobody answers.

        Raises:
            DataError: nobody has answered in time, or what was answered is of no use.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.reconnect_for
        backoff = Backoff()
        warned = False
        while True:
            consumer = self._make(self._server, topic)
            try:
                async with asyncio.timeout(max(_ANSWER_WITHIN, deadline - loop.time())):
                    await consumer.start()
            except BaseException as error:
                await _stop(consumer)
                if not isinstance(error, Exception):
                    raise
                if not _may_pass(error) or loop.time() >= deadline:
                    raise _failed(self.name, error) from error
                if not warned:
                    _log.warning("%s: %s; trying for %g s", self.name, _said(error), self.reconnect_for,
                                 extra=about("stream.unreachable"))  # fmt: skip
                    warned = True
            else:
                return consumer
            await asyncio.sleep(backoff.pause(deadline - loop.time()))


class _KafkaStream:
    """One partition. Offsets are Kafka's own: that of the next record."""

    def __init__(self, name: str, consumer: Consumer, place: Any, skip: int, reconnect_for: float) -> None:
        self.header: str | None = None
        self._name = name
        self._consumer = consumer
        self._place = place
        self._next = skip
        self._reconnect_for = reconnect_for
        self._heard = asyncio.get_running_loop().time()  # when a broker was heard of
        self._warned = False

    async def read(self) -> Sequence[Record]:
        """See ``Stream.read``; this one does not end."""
        while True:
            try:
                polled = await self._consumer.getmany(
                    self._place, timeout_ms=_LONGEST_POLL, max_records=_MOST
                )
            except Exception as error:  # the brokers', after their client has tried again
                raise _failed(self._name, error) from error
            come = [record for records in polled.values() for record in records]
            if not come:
                await self._see_that_somebody_is_there()
                continue
            self._hear()
            if come[0].offset != self._next:
                await self._explain(come[0].offset)
            self._next = come[-1].offset + 1
            return [Record(record.value or b"", record.offset + 1) for record in come]

    def position(self, record: Record) -> Position:
        """See ``Stream.position``."""
        return Position(f"{self._name}, offset {record.offset - 1}")

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""

    async def close(self) -> None:
        """See ``Stream.close``."""
        await _stop(self._consumer)

    def _hear(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._warned:
            self._warned = False
            _log.info("%s: the brokers are there again", self._name, extra=about("stream.reached"))

    async def _see_that_somebody_is_there(self) -> None:
        """Ask a broker something, now and then: its client waits for ever for brokers that have gone.

        Raises:
            DataError: nobody has been there for too long.
        """
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard < _LOOK_EVERY:
            return
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                await self._consumer.end_offsets([self._place])
        except Exception as error:
            if not _may_pass(error) or loop.time() - self._heard >= self._reconnect_for:
                raise _failed(self._name, error) from error
            if not self._warned:
                self._warned = True
                _log.warning("%s: %s; trying for %g s", self._name, _said(error), self._reconnect_for,
                             extra=about("stream.unreachable"))  # fmt: skip
        else:
            self._hear()

    async def _explain(self, offset: int) -> None:
        """Say why another record than the next one has come.

        Offsets may be missing in what is compacted, and where transactions end; that is no loss.

        Raises:
            DataError: it is one from before, so the topic is not the one that was learnt from.
        """
        if offset < self._next:
            reason = (
                f"offset {self._next} is beyond its end, and it begins at {offset}: the topic is not the one "
                "that was learnt from; start a job of another name"
            )
            raise DataError(self._name, None, reason)
        if not self._next:
            return  # whatever was deleted before this job came is none of its business
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                first = (await self._consumer.beginning_offsets([self._place]))[self._place]
        except Exception as error:
            raise _failed(self._name, error) from error
        if first > self._next:
            _log.warning(
                "%s: the records from %d to %d are not kept any more, and left out",
                self._name, self._next, first - 1, extra=about("stream.lost"),
            )  # fmt: skip


async def _stop(consumer: Consumer) -> None:
    # While brokers are away, aiokafka's own raises the CancelledError of a task that it has cancelled itself.
    await asyncio.gather(consumer.stop(), return_exceptions=True)


def _may_pass(error: Exception) -> bool:
    """Whether it may be another time; errors of aiokafka say so themselves."""
    return isinstance(error, OSError | TimeoutError) or bool(getattr(error, "retriable", False))


def _failed(name: str, error: Exception) -> DataError:
    remedy = (
        "see that the brokers run, and can be reached from here by [stream] source and by what they call "
        "themselves (advertised.listeners)"
    )
    return DataError(name, None, f"{_said(error)}; {remedy}")


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nobody answers"
    text = str(error)
    kind = type(error).__name__
    return text if text.startswith(kind) else f"{kind}: {text}"


def _topic_partition(topic: str, partition: int) -> Any:
    try:
        from aiokafka import TopicPartition  # noqa: PLC0415 (an extra)
    except ImportError:  # whoever made the consumer knows what it takes
        return _Partition(topic, partition)
    return TopicPartition(topic, partition)
