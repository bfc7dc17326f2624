"""With brokers that speak the real protocol, and aiokafka's consumer."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.job import DataSettings
from psworker.online.kafka import KafkaTopic
from psworker.online.records import Record, Stream
from psworker.online.rows import Rows
from tests.kafka import Kafka, running_kafka

PATIENT = 60.0


@pytest.fixture
def kafka() -> Iterator[Kafka]:
    with running_kafka() as kafka:
        yield kafka


async def read(stream: Stream, count: int) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(PATIENT):
        while len(found) < count:
            found += await stream.read()
    assert len(found) == count
    return found


async def test_each_partition_is_read_from_where_it_is_said(kafka: Kafka) -> None:
    kafka.write("clicks", 0, [b"a", b"b", b"c"])
    kafka.write("clicks", 2, [b"x", None])
    topic = await KafkaTopic.found(kafka.address, "clicks", PATIENT)
    assert topic.partitions == 4
    first, last, later = await topic.open(0, 0), await topic.open(2, 0), await topic.open(0, 2)
    assert await read(first, 3) == [Record(b"a", 1), Record(b"b", 2), Record(b"c", 3)]
    assert await read(last, 2) == [Record(b"x", 1), Record(b"", 2)]
    assert await read(later, 1) == [Record(b"c", 3)]
    reading = asyncio.create_task(read(first, 1))
    await asyncio.sleep(0)
    await asyncio.to_thread(kafka.write, "clicks", 0, [b"d"])
    assert await reading == [Record(b"d", 4)]
    for stream in (first, last, later):
        await stream.close()
    await topic.close()


async def test_a_record_that_cannot_be_read_is_said_to_be_where_it_is(kafka: Kafka) -> None:
    kafka.write("clicks", 1, [b"1,0", b"x,0"])
    stream = await (await KafkaTopic.found(kafka.address, "clicks", PATIENT)).open(1, 0)
    records = await read(stream, 2)
    await stream.close()

    def at(number: int) -> Position:
        return stream.position(records[number])

    make_batch = Rows(DataSettings("stream", target="y", format="csv"), "clicks", fields=("a", "y")).under(
        None
    )
    with pytest.raises(DataError) as caught:
        make_batch([record.text for record in records], at)
    where = f"kafka://{kafka.address}/clicks, partition 1, offset 1"
    assert str(caught.value).startswith(f'{where}, column "a": "x" is not a number')


async def test_a_topic_that_is_not_there_is_not_made_by_asking(kafka: Kafka) -> None:
    with pytest.raises(DataError, match=r"/clicks: the topic does not exist; create it, or correct"):
        await KafkaTopic.found(kafka.address, "clicks", PATIENT)
    assert kafka.topics() == set()


async def test_a_topic_that_is_shorter_than_what_was_learnt_from(kafka: Kafka) -> None:
    kafka.write("clicks", 0, [b"a", b"b"])
    stream = await (await KafkaTopic.found(kafka.address, "clicks", PATIENT)).open(0, 100)
    with pytest.raises(DataError, match=r"offset 100 is beyond its end, and it begins at 0: .* another name"):
        await read(stream, 1)
    await stream.close()


@pytest.mark.long
async def test_brokers_that_go(kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    kafka.write("clicks", 0, [b"a"])
    topic = await KafkaTopic.found(kafka.address, "clicks", 8.0)
    stream = await topic.open(0, 0)
    await read(stream, 1)
    await asyncio.to_thread(kafka.end)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="see that the brokers run"):
        await read(stream, 1)
    await stream.close()
    (warning,) = caplog.records
    assert warning.__dict__["event"] == "stream.unreachable"
    assert "partition 0: nobody answers; trying for 8 s" in warning.getMessage()
    with pytest.raises(DataError, match=r"Unable to bootstrap .* see that the brokers run"):
        await KafkaTopic.found(kafka.address, "clicks", 1.0)
