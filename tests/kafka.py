"""A Kafka cluster in this process: librdkafka's, which speaks the real protocol on 127.0.0.1."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Kafka:
    """Brokers; a topic comes into being, with 4 partitions, when something is written to it."""

    def __init__(self, brokers: Any, address: str, writer: Any) -> None:
        self.address = address
        self._brokers = brokers
        self._writer = writer

    def write(self, topic: str, partition: int, values: Iterable[bytes | None]) -> None:
        """Append records, and wait until the brokers have them."""
        for value in values:
            self._writer.produce(topic, value, partition=partition)
        assert self._writer.flush(60) == 0

    def topics(self) -> set[str]:
        """Return the topics that there are."""
        return set(self._writer.list_topics(timeout=60).topics)

    def end(self) -> None:
        """Close every connection, and listen no more."""
        self._writer = None
        self._brokers = None


@contextmanager
def running_kafka() -> Iterator[Kafka]:
    """Yield a cluster of one broker; the test is skipped where confluent-kafka is not installed."""
    confluent = pytest.importorskip(
        "confluent_kafka", reason="needs confluent-kafka; pip install 'asyncps[dev]'"
    )
    silent = {"log_level": 0}
    brokers = confluent.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none", **silent})
    (broker,) = brokers.list_topics(timeout=60).brokers.values()
    address = f"{broker.host}:{broker.port}"
    kafka = Kafka(brokers, address, confluent.Producer({"bootstrap.servers": address, **silent}))
    del brokers
    try:
        yield kafka
    finally:
        kafka.end()
