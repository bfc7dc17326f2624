"""Records of a Kafka topic. Who reads which partition, and from where, the cluster says, not the brokers.

Partition i of the topic is chunk i of the job, leased to one worker at a time. Consumer groups and committed
offsets are not used: the offset to go on from is kept with the update that the records before it have led to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from protocol.events import about
from psworker.errors import DataError
from psworker.online.records import Record

__all__ = ["Consumer", "KafkaTopic", "MakeConsumer", "aiokafka_consumer"]

_log = logging.getLogger(__name__)

_LONGEST_POLL: Final = 1000  # milliseconds; it ends sooner if something comes
_MOST: Final = 2000  # records of one poll


class Consumer(Protocol):
    """What is used of ``aiokafka.AIOKafkaConsumer``; see there."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""

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
    consumer: Consumer = AIOKafkaConsumer(
        *([] if topic is None else [topic]),
        bootstrap_servers=server,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # where the brokers have dropped what comes next
    )
    return consumer


class _Partition(NamedTuple):
    """As ``aiokafka.TopicPartition``, a tuple of the same fields, whose equal it is."""

    topic: str
    partition: int


class KafkaTopic:
    """A topic; made by ``KafkaTopic.found``."""

    def __init__(self, server: str, topic: str, partitions: int, make: MakeConsumer) -> None:
        self.partitions = partitions
        self._server = server
        self._topic = topic
        self._make = make
        self._name = _name(server, topic)

    @classmethod
    async def found(cls, server: str, topic: str, make: MakeConsumer = aiokafka_consumer) -> KafkaTopic:
        """Ask a broker, ``HOST:PORT``, for the topic's partitions.

        Raises:
            DataError: nobody answers, or there is no such topic; or its partitions are not 0, 1, 2 ...
        """
        name = _name(server, topic)
        consumer = make(server, topic)
        await _start(consumer, name)
        try:
            found = consumer.partitions_for_topic(topic)
        finally:
            await consumer.stop()
        if not found:
            raise DataError(name, None, "the topic does not exist; create it, or correct [stream] source")
        if found != set(range(len(found))):
            raise DataError(name, None, f"its partitions are {sorted(found)}; expected 0 to {len(found) - 1}")
        return cls(server, topic, len(found), make)

    async def open(self, partition: int, skip: int) -> _KafkaStream:
        """See ``Streams.open``."""
        consumer = self._make(self._server, None)
        await _start(consumer, self._name)
        place = _topic_partition(self._topic, partition)
        consumer.assign([place])
        consumer.seek(place, skip)
        return _KafkaStream(f"{self._name}/{partition}", consumer, place, skip)

    async def close(self) -> None:
        """See ``Streams.close``: every stream closes its own consumer."""


class _KafkaStream:
    """One partition. Offsets are Kafka's own: that of the next record."""

    def __init__(self, name: str, consumer: Consumer, place: Any, skip: int) -> None:
        self.header: str | None = None
        self._name = name
        self._consumer = consumer
        self._place = place
        self._next = skip

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
                continue
            if self._next and come[0].offset > self._next + _MOST:
                _log.warning(
                    "%s: the records from %d to %d are not kept any more, and left out",
                    self._name, self._next, come[0].offset - 1, extra=about("stream.lost"),
                )  # fmt: skip
            self._next = come[-1].offset + 1
            return [Record(record.value or b"", record.offset + 1) for record in come]

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""

    async def close(self) -> None:
        """See ``Stream.close``."""
        await self._consumer.stop()


async def _start(consumer: Consumer, name: str) -> None:
    try:
        await consumer.start()
    except Exception as error:
        await consumer.stop()
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> DataError:
    return DataError(name, None, f"{type(error).__name__}: {error}; see that the brokers run and let us in")


def _name(server: str, topic: str) -> str:
    return f"kafka://{server}/{topic}"


def _topic_partition(topic: str, partition: int) -> Any:
    try:
        from aiokafka import TopicPartition  # noqa: PLC0415 (an extra)
    except ImportError:  # whoever made the consumer knows what it takes
        return _Partition(topic, partition)
    return TopicPartition(topic, partition)
