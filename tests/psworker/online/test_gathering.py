import asyncio
from collections.abc import Sequence

import pytest

from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.online.gathering import Gathering
from psworker.online.records import Record


class Given:
    """A stream of what a test puts into it."""

    def __init__(self) -> None:
        self.header: str | None = None
        self.queue: asyncio.Queue[list[Record] | DataError] = asyncio.Queue()
        self.closed = False
        self._count = 0

    def put(self, count: int) -> None:
        self.queue.put_nowait([Record(b"", self._count + n) for n in range(1, count + 1)])
        self._count += count

    async def read(self) -> Sequence[Record]:
        records = await self.queue.get()
        if isinstance(records, DataError):
            raise records
        return records

    def position(self, record: Record) -> Position:
        return Position("given", record.offset)

    def done(self, offset: int) -> None: ...

    async def close(self) -> None:
        self.closed = True


def offsets(records: Sequence[Record]) -> list[int]:
    return [record.offset for record in records]


async def test_full_batches_are_cut_from_what_comes_at_once() -> None:
    stream = Given()
    stream.put(5)
    gathering = Gathering(stream, 2, 0.0)
    assert [offsets(await gathering.batch()) for _ in range(3)] == [[1, 2], [3, 4], [5]]
    await gathering.close()
    assert stream.closed


async def test_a_batch_is_full_before_it_is_due() -> None:
    stream = Given()
    stream.put(1)
    gathering = Gathering(stream, 2, 3600.0)
    batch = asyncio.create_task(gathering.batch())
    await asyncio.sleep(0)
    stream.put(1)
    assert offsets(await batch) == [1, 2]
    await gathering.close()


async def test_what_has_come_is_given_out_when_it_is_due() -> None:
    stream = Given()
    stream.put(1)
    gathering = Gathering(stream, 2, 0.001)
    assert offsets(await gathering.batch()) == [1]
    stream.put(1)  # the read that was under way gets it
    assert offsets(await gathering.batch()) == [2]
    await gathering.close()


async def test_nothing_is_due_before_something_has_come() -> None:
    stream = Given()
    gathering = Gathering(stream, 2, 0.0)
    batch = asyncio.create_task(gathering.batch())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not batch.done()
    stream.put(3)
    assert offsets(await batch) == [1, 2]
    await gathering.close()


async def test_the_end_comes_after_all_was_given_out() -> None:
    stream = Given()
    stream.put(3)
    stream.put(0)
    gathering = Gathering(stream, 2, 3600.0)
    assert offsets(await gathering.batch()) == [1, 2]
    assert not gathering.ended
    assert offsets(await gathering.batch()) == [3]
    assert gathering.ended
    assert await gathering.batch() == []
    await gathering.close()


async def test_stopped_it_gives_out_what_it_has_and_then_nothing() -> None:
    stream = Given()
    stream.put(1)
    gathering = Gathering(stream, 2, 3600.0)
    batch = asyncio.create_task(gathering.batch())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not batch.done()
    gathering.stop()
    assert offsets(await batch) == [1]
    assert await gathering.batch() == []
    assert not gathering.ended
    await gathering.close()


async def test_what_cannot_be_read_is_raised() -> None:
    stream = Given()
    stream.queue.put_nowait(DataError("test", None, "is broken"))
    gathering = Gathering(stream, 2, 0.0)
    with pytest.raises(DataError, match="is broken"):
        await gathering.batch()
    await gathering.close()
