"""With a consumer that keeps to aiokafka's interface, for what cannot be done to brokers here."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from psworker.errors import DataError
from psworker.online.kafka import Consumer, KafkaTopic, aiokafka_consumer
from psworker.online.records import Record


@dataclass(frozen=True)
class Message:
    offset: int
    value: bytes | None


@dataclass
class Broker:
    """Topics' partitions of messages; ``kept`` is the first offset that is not deleted."""

    topics: dict[str, dict[int, list[bytes | None]]]
    kept: int = 0
    down: bool = False
    down_for: int = 0  # attempts to connect
    consumers: list["FakeConsumer"] = field(default_factory=list)

    def __call__(self, server: str, topic: str | None) -> Consumer:
        consumer = FakeConsumer(self, topic)
        self.consumers.append(consumer)
        return consumer


class FakeConsumer:
    def __init__(self, broker: Broker, topic: str | None) -> None:
        self._broker = broker
        self._topic = topic
        self._assigned: list[TopicPartition] = []
        self._next: dict[TopicPartition, int] = {}
        self.running = False

    async def start(self) -> None:
        if self._broker.down or self._broker.down_for:
            self._broker.down_for -= 1
            raise ConnectionError("no broker")
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def topics(self) -> set[str]:
        return set(self._broker.topics)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        assert topic == self._topic  # only of topics that were subscribed to
        found = self._broker.topics.get(topic)
        return None if found is None else set(found)

    def assign(self, partitions: Sequence[Any]) -> None:
        assert self._topic is None  # aiokafka refuses both
        self._assigned = list(partitions)

    def seek(self, partition: Any, offset: int) -> None:
        assert partition in self._assigned
        self._next[partition] = offset

    async def getmany(
        self, *partitions: Any, timeout_ms: int = 0, max_records: int | None = None
    ) -> Mapping[Any, Sequence[Any]]:
        assert self.running
        if self._broker.down:
            raise ConnectionError("gone")
        (partition,) = partitions
        messages = self._broker.topics[partition.topic][partition.partition]
        first = max(self._next[partition], self._broker.kept)
        found = [Message(n, messages[n]) for n in range(first, len(messages))][: max_records or 1]
        self._next[partition] = first + len(found)
        return {partition: found} if found else {}

    async def beginning_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self._broker.kept)

    async def end_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        raise NotImplementedError  # only asked for where nothing comes


def broker(**settings: Any) -> Broker:
    return Broker({"clicks": {0: [b"a", b"b", b"c"], 1: [b"x", None]}}, **settings)


async def test_partitions_are_the_topics() -> None:
    made = broker()
    topic = await KafkaTopic.found("host:9092", "clicks", 0.0, made)
    assert topic.partitions == 2
    assert not any(consumer.running for consumer in made.consumers)


async def test_records_carry_the_offset_to_go_on_from() -> None:
    made = broker()
    topic = await KafkaTopic.found("host:9092", "clicks", 0.0, made)
    stream = await topic.open(0, 0)
    assert await stream.read() == [Record(b"a", 1), Record(b"b", 2), Record(b"c", 3)]
    other = await topic.open(1, 0)
    assert await other.read() == [Record(b"x", 1), Record(b"", 2)]
    later = await topic.open(0, 2)
    assert await later.read() == [Record(b"c", 3)]
    for one in (stream, other, later):
        await one.close()
    assert not any(consumer.running for consumer in made.consumers)


async def test_what_the_broker_has_deleted_is_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    made = Broker({"clicks": {0: [b"a"] * 60}}, kept=50)
    stream = await (await KafkaTopic.found("host:9092", "clicks", 0.0, made)).open(0, 10)
    with caplog.at_level(logging.WARNING):
        first = await stream.read()
    assert first[0].offset == 51
    assert "the records from 10 to 49 are not kept any more" in caplog.text


@pytest.mark.parametrize(("skip", "first"), [(0, 50), (50, 50)])
async def test_what_was_deleted_before_is_no_loss(
    skip: int, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = Broker({"clicks": {0: [b"a"] * 60}}, kept=50)
    stream = await (await KafkaTopic.found("host:9092", "clicks", 0.0, made)).open(0, skip)
    assert (await stream.read())[0].offset == first + 1
    assert caplog.records == []


async def test_brokers_that_come_later(caplog: pytest.LogCaptureFixture) -> None:
    made = broker(down_for=2)
    topic = await KafkaTopic.found("host:9092", "clicks", 60.0, made)
    assert topic.partitions == 2
    (warning,) = caplog.records  # of two attempts
    assert "kafka://host:9092/clicks: ConnectionError: no broker; trying for 60 s" in warning.getMessage()
    assert not any(consumer.running for consumer in made.consumers)


async def test_a_topic_that_is_not_there() -> None:
    with pytest.raises(DataError, match="kafka://host:9092/other: the topic does not exist"):
        await KafkaTopic.found("host:9092", "other", 0.0, broker())


async def test_partitions_that_are_not_numbered_from_0() -> None:
    with pytest.raises(DataError, match=r"its partitions are \[1, 2\]; expected 0 to 1"):
        await KafkaTopic.found("host:9092", "odd", 0.0, Broker({"odd": {1: [], 2: []}}))


async def test_brokers_that_are_not_there() -> None:
    with pytest.raises(DataError, match="ConnectionError: no broker; see that the brokers run"):
        await KafkaTopic.found("host:9092", "clicks", 0.0, broker(down=True))
    made = broker()
    stream = await (await KafkaTopic.found("host:9092", "clicks", 0.0, made)).open(0, 0)
    made.down = True
    with pytest.raises(DataError, match="ConnectionError: gone"):
        await stream.read()


_USED = (
    "start",
    "stop",
    "topics",
    "partitions_for_topic",
    "assign",
    "seek",
    "getmany",
    "beginning_offsets",
    "end_offsets",
)


async def test_aiokafkas_consumer_has_this_interface() -> None:
    consumer = aiokafka_consumer("127.0.0.1:9", None)
    assert isinstance(consumer, AIOKafkaConsumer)
    for name in _USED:
        theirs = inspect.signature(getattr(AIOKafkaConsumer, name)).parameters
        assert {*inspect.signature(getattr(FakeConsumer, name)).parameters} <= {*theirs, "max_records"}
    with pytest.raises(DataError, match=r"kafka://127\.0\.0\.1:9/clicks: KafkaConnectionError"):
        await KafkaTopic.found("127.0.0.1:9", "clicks", 0.0)
    await consumer.stop()
