import asyncio
import errno
import logging
import random
import struct
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from protocol.errors import CheckpointUnusable, LogUnwritable
from psserver.durability import failpoints
from psserver.durability.log import Batch, UpdateLog, recover
from psserver.durability.log_reader import Recovered
from psserver.durability.log_writer import RESERVE, LogWriter, SegmentName
from psserver.durability.records import HEADER, Gathered, decode_record_header, decode_segment_header
from psserver.durability.storage import LocalStorage, Storage
from tests.faults.disk import PAGE, Died, Disk

LOG = "log/shard-0"
NEVER = 1e6  # seconds between two syncs


@dataclass
class State:
    """What a server would have: all numbers that were appended, and the latest document and arrays."""

    numbers: list[int] = field(default_factory=list)
    latest: int = 0
    arrays: dict[int, int] = field(default_factory=dict)

    def apply_all(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        for number in batch.events:
            self.numbers.append(number)
        for number in batch.docs.values():
            self.latest = number
        for (_, which), (info, values) in batch.arrays.items():
            assert values.tolist() == [info] * len(values)
            self.arrays[int(which)] = info

    def is_one_that_was(self, after: int = 0) -> bool:
        """Whether it is the state after some number of appends, recovered from after the first ``after``."""
        last = self.numbers[-1] if self.numbers else after
        own = range(after + 1, last + 1)
        return (
            self.numbers == list(own)
            and self.latest == (last if own else 0)
            and self.arrays == {number % 3: number for number in own}
        )


def array_of(number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.full(1500 if number % 4 == 0 else 5, number)  # some lie on several pages


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # a test that dies meanwhile cancels it
        future.set_result(None)


class Appender:
    """Appends 1, 2, 3, ... to a log, and knows which were acknowledged, and durable."""

    def __init__(self, log: UpdateLog, last: int = 0) -> None:
        self.log = log
        self.last = last
        self.acknowledged: list[int] = []
        self.durable = 0
        self.rotated: dict[int, int] = {1: 0}  # segments, and the last number before
        self.kept = 1  # the segment from which the log is needed

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.last += 1
            number = self.last
            self.log.append(
                [number],
                arrays={("a", number % 3): (number, array_of(number))},
                docs={("latest",): lambda: self.last},
                then=partial(self.acknowledged.append, number),
            )

    async def append_and_wait(self, count: int = 1) -> None:
        self.append(count)
        written = asyncio.get_running_loop().create_future()
        self.log.append(then=partial(resolve, written))
        await written

    async def flush(self) -> None:
        last = self.last
        await self.log.flush()
        self.durable = max(self.durable, last)

    def rotate(self) -> int:
        segment = self.log.rotate()
        self.rotated[segment] = self.last
        return segment


def new_log(storage: Storage, recovered: Recovered, sync: float = 0, retry: float = 0.001) -> UpdateLog:
    log = UpdateLog(storage, LOG, sync=sync, observe_sync=lambda seconds: None, retry=retry)
    log.begin(recovered.segment, recovered.position, recovered.log_id)
    return log


def read(storage: Storage, segment: int = 1) -> tuple[Recovered, State]:
    recovered = recover(storage, LOG, segment)
    state = State()
    state.apply_all(recovered)
    return recovered, state


@asynccontextmanager
async def begun(storage: Storage, sync: float = 0) -> AsyncIterator[Appender]:
    recovered, state = read(storage)
    log = new_log(storage, recovered, sync)
    yield Appender(log, len(state.numbers))
    await log.close()


async def scripted(appender: Appender) -> None:
    """Everything that a server does with its log."""
    await appender.append_and_wait()
    await appender.append_and_wait(3)
    second = appender.rotate()
    await appender.append_and_wait()
    await appender.append_and_wait(2)
    await appender.flush()
    appender.kept = second  # a checkpoint is complete
    appender.log.drop_before(second)
    await appender.append_and_wait(2)
    await appender.append_and_wait()
    appender.append()
    appender.rotate()
    third = appender.rotate()
    appender.append()
    await appender.append_and_wait()
    await appender.flush()
    await appender.append_and_wait()
    appender.kept = third
    appender.log.drop_before(third)
    await appender.append_and_wait(4)
    await appender.append_and_wait()


async def life(disk: Disk, sync: float, script: Callable[[Appender], Any] = scripted) -> Appender:
    """Run a script on a disk until it is over, or the process dies."""
    dead = asyncio.Event()
    loop = asyncio.get_running_loop()
    disk.on_death = lambda: loop.call_soon_threadsafe(dead.set)
    recovered, state = read(disk)
    appender = Appender(new_log(disk, recovered, sync), len(state.numbers))
    running = loop.create_task(script(appender))
    dying = loop.create_task(dead.wait())
    await asyncio.wait({running, dying}, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, dying):
        task.cancel()
    results = await asyncio.gather(running, dying, return_exceptions=True)
    try:
        await appender.log.close()
        appender.durable = appender.last
    except (LogUnwritable, Died):
        assert dead.is_set()
    assert dead.is_set() or results[0] is None
    return appender


def check_what_is_left(appender: Appender, left: Disk, sync: float) -> tuple[Recovered, State]:
    before = appender.rotated[appender.kept]
    recovered, state = read(left, appender.kept)
    assert state.is_one_that_was(before), state
    found = before + len(state.numbers)
    assert found >= appender.durable
    if sync == 0:
        assert found >= max(appender.acknowledged, default=0)
    return recovered, state


def steps_of(sync: float) -> int:
    disk = Disk()
    asyncio.run(life(disk, sync))
    return len(disk.steps)


# --- power failures


@pytest.mark.parametrize("sync", [0, NEVER])
def test_after_a_crash_at_any_step_all_that_was_durable_is_there_and_the_log_goes_on(sync: float) -> None:
    steps = steps_of(sync)
    assert steps > 35
    acknowledged = survived = 0
    for step in range(1, steps + 1):
        disk = Disk()
        disk.die_at = step
        appender = asyncio.run(life(disk, sync))
        acknowledged += len(appender.acknowledged)
        for seed in range(5):
            left = disk.crash(random.Random(f"{step} {seed}"))
            recovered, state = check_what_is_left(appender, left, sync)
            survived += len(state.numbers)
            asyncio.run(check_second_life(left, recovered, state, appender, seed))
    assert acknowledged > 5 * steps
    assert survived > 10 * steps


async def check_second_life(
    left: Disk, recovered: Recovered, state: State, first: Appender, seed: int
) -> None:
    """Go on with what is left; crash again; all of both lives is there."""
    before = first.rotated[first.kept]
    log = new_log(left, recovered)
    second = Appender(log, before + len(state.numbers))
    await second.append_and_wait(2)
    await second.append_and_wait()
    again, both = read(left.crash(random.Random(seed)), first.kept)
    assert both.is_one_that_was(before)
    assert before + len(both.numbers) == second.last == second.acknowledged[-1]
    assert again.log_id == recovered.log_id or not state.numbers
    await log.close()


@pytest.mark.parametrize("sync", [0, NEVER])
def test_after_a_failed_sync_nothing_is_lost_wherever_the_process_dies_then(sync: float) -> None:
    counted = Disk()
    asyncio.run(life(counted, sync))
    syncs = sum(what == "sync" for what, _ in counted.steps)
    assert syncs >= 8
    rng = random.Random(1)
    for failing in range(1, syncs + 1):
        disk = Disk()
        disk.fail_syncs = frozenset({failing, failing + 1} if failing % 2 else {failing})
        appender = asyncio.run(life(disk, sync))
        assert appender.log.failures or failing == syncs  # the last one is of the mark at the end
        assert appender.log.problem is None
        assert appender.acknowledged == list(range(1, appender.last + 1))
        for step in rng.sample(range(1, len(disk.steps) + 1), 12):
            dying = Disk()
            dying.fail_syncs = disk.fail_syncs
            dying.die_at = step
            appender = asyncio.run(life(dying, sync))
            for seed in range(3):
                check_what_is_left(appender, dying.crash(random.Random(f"{step} {seed}")), sync)


@pytest.mark.parametrize("sync", [0, NEVER])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_step_fails_it_is_tried_again_and_all_is_acknowledged_in_order(
    sync: float, number: int
) -> None:
    for step in range(1, steps_of(sync) + 1):
        disk = Disk()
        disk.fail_at = {step: number}
        appender = asyncio.run(life(disk, sync))
        assert appender.acknowledged == list(range(1, appender.last + 1))
        assert appender.log.problem is None
        assert appender.durable == appender.last
        check_what_is_left(appender, disk.crash(random.Random(step)), sync)


@pytest.mark.parametrize("sync", [0, NEVER])
def test_a_process_that_is_killed_loses_nothing_that_it_wrote(sync: float) -> None:
    for step in range(1, steps_of(sync) + 1):
        disk = Disk()
        disk.die_at = step
        appender = asyncio.run(life(disk, sync))
        left = disk.killed()
        before = appender.rotated[appender.kept]
        _, state = check_what_is_left(appender, left, 0)
        # It is synced now, so that what is written next may rely on it.
        _, again = read(left.crash(random.Random(step)), appender.kept)
        assert before + len(again.numbers) == before + len(state.numbers) >= len(appender.acknowledged)


# --- damage


def batch_of(number: int) -> Gathered:
    """What ``Appender`` appends."""
    entry = msgpack.packb((("a", number % 3), number)), array_of(number)
    document = msgpack.packb((("latest",), number))
    return Gathered([msgpack.packb(number)], {("latest",): document}, {("a", number % 3): entry})


def written(*, closed: bool, sync: bool = True) -> Disk:
    """A log of three segments with three records each; ``closed`` has a mark at the end."""
    disk = Disk()
    writer = LogWriter(disk, LOG, 0, 99)
    for number in range(1, 10):
        writer.commit((number + 2) // 3, batch_of(number), sync=sync or number % 3 == 0)
    if closed:
        writer.close()
    return disk


def path_of(segment: int) -> str:
    return f"{LOG}/{segment:08d}.log"


def records_of(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Where the records of a segment are: offsets of the record, of its data, and of its end."""
    found, offset = [], HEADER
    while offset < len(data):
        header = decode_record_header(bytes(data[offset : offset + HEADER]))
        end = offset + header.length
        found.append((offset, end - header.data, end))
        offset = end
    return found


@dataclass(frozen=True)
class Damage:
    """What happens to a file, and what has to come of it: an error, or a cut, at an offset of the file."""

    name: str
    segment: int
    offset: int  # of the byte that is flipped, or where the file ends
    truncated: bool
    at: int
    batches: int  # that can be read before
    is_torn: bool  # a cut
    closed: bool

    def __str__(self) -> str:
        return f"{'closed' if self.closed else 'open'}-{self.segment}-{self.name}"

    def apply(self, disk: Disk) -> None:
        data = bytearray(disk.contents(path_of(self.segment)))
        if self.truncated:
            del data[self.offset :]
        else:
            data[self.offset] ^= 0x41
        disk.overwrite(path_of(self.segment), bytes(data))


def damages(*, closed: bool) -> Iterator[Damage]:
    disk = written(closed=closed)
    for segment in (1, 2, 3):
        data = disk.contents(path_of(segment))
        before = (segment - 1) * 3
        for field_at in (0, 8, 12, 16, 24, 32, 40, 56, 63):
            yield Damage(f"header{field_at}", segment, field_at, False, 0, before, False, closed)
        for end in (0, 1, 63):
            yield Damage(f"end{end}", segment, end, True, 0, before, segment == 3, closed)
        records = records_of(data)
        for index, (begin, body, end) in enumerate(records):
            is_last = segment == 3 and index == len(records) - 1
            places = {f"field{at}": begin + at for at in (0, 4, 8, 16, 24, 32, 40, 48, 56, 63)}
            places |= {"meta": begin + HEADER, "meta's end": body - 1}
            if end > body:
                places |= {"data": body, "middle of the data": (body + end) // 2, "data's end": end - 1}
            for place, at in places.items():
                name = f"record{index}-{place}"
                yield Damage(name, segment, at, False, begin, before + index, is_last, closed)
            for part, at in {"header": begin + 30, "meta": begin + HEADER + 5, "data": end - 40}.items():
                name = f"record{index}-ends in its {part}"
                yield Damage(name, segment, at, True, begin, before + index, segment == 3, closed)
            if segment < 3 and index:
                name = f"record{index}-missing"
                yield Damage(name, segment, begin, True, begin, before + index, False, closed)


DAMAGES = [damage for closed in (False, True) for damage in damages(closed=closed)]


def test_there_are_enough_damages() -> None:
    assert len(DAMAGES) > 300
    assert sum(damage.is_torn for damage in DAMAGES) > 30


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damage_is_named_and_a_torn_tail_is_cut(damage: Damage, caplog: pytest.LogCaptureFixture) -> None:
    disk = written(closed=damage.closed)
    damage.apply(disk)
    recovered, state = recover(disk, LOG, 1), State()
    path = path_of(damage.segment)
    if damage.is_torn:
        state.apply_all(recovered)
        size = disk.size(path)
        assert recovered.cut == (path, damage.at, size - damage.at)
        assert f"disk/{path} is torn at byte {damage.at}: " in caplog.text
        assert f"the {size - damage.at} bytes from there on" in caplog.text
    else:
        with pytest.raises(CheckpointUnusable, match=f"{path}, byte {damage.at}: .*put the file back"):
            state.apply_all(recovered)
    assert state.is_one_that_was()
    assert len(state.numbers) == damage.batches


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage.is_torn], ids=str)
async def test_after_a_cut_the_log_goes_on_and_stays_readable(damage: Damage) -> None:
    disk = written(closed=damage.closed)
    damage.apply(disk)
    for _ in range(2):
        async with begun(disk) as appender:
            await appender.append_and_wait(2)
    recovered, state = read(disk)
    assert state.numbers == list(range(1, damage.batches + 5))
    assert recovered.log_id == 99


def test_a_log_that_ends_between_records_is_a_shorter_log() -> None:
    disk = written(closed=False)
    data = disk.contents(path_of(3))
    disk.overwrite(path_of(3), data[: records_of(data)[2][0]])
    recovered, state = read(disk)
    assert (recovered.cut, state.numbers) == (None, list(range(1, 9)))


def test_what_was_not_yet_synced_may_have_holes() -> None:
    disk = written(closed=False, sync=False)
    assert read(disk)[1].numbers == list(range(1, 10))
    data = bytearray(disk.contents(path_of(3)))
    begin, body, _ = records_of(data)[1]
    data[body - 1] ^= 1  # when the next one was written, this one had not been synced
    disk.overwrite(path_of(3), data)
    recovered, state = read(disk)
    assert (recovered.cut, state.numbers) == ((path_of(3), begin, len(data) - begin), list(range(1, 8)))


def test_after_a_clean_end_a_damaged_last_record_is_no_torn_tail() -> None:
    for closed in (False, True):
        disk = written(closed=closed)
        data = bytearray(disk.contents(path_of(3)))
        begin, _, end = records_of(data)[2]
        data[end - 1] ^= 1
        disk.overwrite(path_of(3), data)
        if closed:
            with pytest.raises(CheckpointUnusable, match=f"{path_of(3)}, byte {begin}: .* it was durable"):
                read(disk)
        else:
            assert read(disk)[0].cut is not None


def test_a_last_file_whose_first_page_is_lost_held_what_was_durable() -> None:
    disk = Disk()
    writer = LogWriter(disk, LOG, 0, 99)
    for number in (1, 4, 5):  # the array of 4 has several pages
        writer.commit(1, batch_of(number), sync=True)
    for keeps_first in (True, False):  # the header of the first record
        data = bytearray(disk.contents(path_of(1)))
        data[:HEADER] = bytes(HEADER)
        if not keeps_first:
            data[:PAGE] = bytes(PAGE)
        left = Disk()
        left.publish(path_of(1), bytes(data))
        with pytest.raises(CheckpointUnusable, match=f"{path_of(1)}, byte 0: the file's header is damaged"):
            read(left)
    data = bytearray(disk.contents(path_of(1)))
    del data[records_of(data)[1][2] :]
    data[:PAGE] = bytes(
        PAGE
    )  # only what is in the array of the second record: nothing says that it was durable
    left.publish(path_of(1), bytes(data))
    assert read(left)[0].cut == (path_of(1), 0, len(data))


def test_a_damaged_header_before_the_only_record_is_no_torn_file() -> None:
    disk = Disk()
    LogWriter(disk, LOG, 0, 99).commit(1, batch_of(1), sync=True)
    data = disk.contents(path_of(1))
    disk.overwrite(path_of(1), bytes(HEADER) + data[HEADER:])
    with pytest.raises(CheckpointUnusable, match=f"{path_of(1)}, byte 0: the file's header is damaged"):
        read(disk)


def test_a_torn_file_that_was_passed_over_is_not_missing_after_a_power_failure() -> None:
    disk = Disk()
    disk.create(path_of(1))
    disk = disk.killed()
    recovered, _ = read(disk)
    LogWriter(disk, LOG, recovered.position, recovered.log_id).commit(
        recovered.segment, batch_of(1), sync=True
    )
    for seed in range(20):
        assert read(disk.crash(random.Random(seed)))[1].numbers == [1]
    early = Disk()
    early.create(path_of(1))
    early = early.killed()
    read(early)
    assert {tuple(early.crash(random.Random(seed)).names(LOG)) for seed in range(20)} == {("00000001.log",)}


def test_a_file_that_starts_within_a_record_is_an_error() -> None:
    disk = written(closed=False)
    begin, _, end = records_of(disk.contents(path_of(3)))[2]
    start = decode_segment_header(disk.contents(path_of(3))[:HEADER]).start
    writer = LogWriter(disk, LOG, start + (begin + end) // 2 // 64 * 64, 99)
    writer.commit(4, batch_of(10), sync=True)
    with pytest.raises(CheckpointUnusable, match=f"{path_of(3)}, byte {begin}: the record reaches beyond"):
        read(disk)


def test_a_file_that_starts_before_the_one_before_it_is_an_error() -> None:
    disk = written(closed=False)
    LogWriter(disk, LOG, 64, 99).commit(4, batch_of(10), sync=True)
    with pytest.raises(CheckpointUnusable, match=f"{path_of(4)}, byte 0: the file starts before"):
        read(disk)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_file_is_named(missing: int) -> None:
    disk = written(closed=True)
    disk.remove(path_of(missing))
    with pytest.raises(CheckpointUnusable, match=f"{path_of(missing)}, byte 0: the file is missing"):
        read(disk)


def test_files_that_changed_places_are_named() -> None:
    disk = written(closed=True)
    first, second = disk.contents(path_of(1)), disk.contents(path_of(2))
    disk.overwrite(path_of(1), second)
    disk.overwrite(path_of(2), first)
    with pytest.raises(CheckpointUnusable, match=f"{path_of(1)}, byte 0: this is the file of another"):
        read(disk)


def test_a_file_of_another_log_is_named() -> None:
    disk, other = written(closed=True), Disk()
    writer = LogWriter(other, LOG, decode_segment_header(disk.contents(path_of(3))[:HEADER]).start, 98)
    writer.commit(3, batch_of(7), sync=True)
    disk.overwrite(path_of(3), other.contents(path_of(3)))
    with pytest.raises(CheckpointUnusable, match=f"{path_of(3)}, byte 0: the file is of another log"):
        read(disk)


def test_a_file_of_newer_software_is_named() -> None:
    disk = written(closed=True)
    fields = struct.pack("<8sIIQQQ16x", b"PSUPDLOG", 2, 0, 3, 0, 99)
    disk.overwrite(path_of(3), fields + xxh3_64_intdigest(fields).to_bytes(8, "little"))
    with pytest.raises(CheckpointUnusable, match=f"{path_of(3)}, byte 0: .* format version 2"):
        read(disk)


def test_other_files_in_the_directory_are_let_alone() -> None:
    disk = written(closed=True)
    for name in ("1.log", "00000004.log.bak", "00000004-0.log", "000000004.log", "x.log", "00000002-01.log"):
        disk.publish(f"{LOG}/{name}", b"?")
    assert read(disk)[1].numbers == list(range(1, 10))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    disk, storage = written(closed=True), LocalStorage(tmp_path)
    for segment in (1, 3):
        storage.publish(path_of(segment), disk.contents(path_of(segment)))
    (tmp_path / path_of(2)).mkdir()
    with pytest.raises(CheckpointUnusable, match=f"{path_of(2)}, byte 0: .*[Dd]irectory"):
        read(storage)


def test_a_log_from_a_later_segment_on_does_not_need_the_earlier_ones() -> None:
    disk = written(closed=True)
    disk.overwrite(path_of(1), b"damaged")
    recovered, state = read(disk, 2)
    assert (state.numbers, recovered.segment, recovered.log_id) == (list(range(4, 10)), 4, 99)


def test_a_log_that_is_not_there_is_empty_and_that_is_said_where_it_is_odd(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recovered, state = read(Disk())
    assert (recovered.segment, recovered.position, state.numbers, caplog.text) == (1, 0, [], "")
    recovered, state = read(Disk(), 5)
    assert (recovered.segment, recovered.position, state.numbers) == (5, 0, [])
    assert "has no segment 5: nothing is replayed" in caplog.text
    assert recover(Disk(), LOG, 1).log_id != recover(Disk(), LOG, 1).log_id


NAMES = st.sampled_from(["00000001.log", "00000001-1.log", "00000002.log", "00000003.log"])


@settings(max_examples=200)
@given(st.dictionaries(NAMES, st.binary(max_size=500)))
def test_garbage_is_unusable_or_torn(files: dict[str, bytes]) -> None:
    disk = Disk()
    for name, data in files.items():
        disk.publish(f"{LOG}/{name}", data)
    try:
        recovered, state = read(disk)
    except CheckpointUnusable:
        return
    assert (state.numbers, recovered.position) == ([], 0)


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2**20), st.binary(max_size=9))))
def test_whatever_is_overwritten_what_is_read_is_a_prefix(
    closed: bool, changes: list[tuple[int, int, bytes]]
) -> None:
    disk = written(closed=closed)
    for segment, place, new in changes:
        data = bytearray(disk.contents(path_of(segment)))
        at = place % max(1, len(data))
        data[at : at + len(new)] = new
        disk.overwrite(path_of(segment), data if new else data[:at])
    recovered, state = recover(disk, LOG, 1), State()
    with suppress(CheckpointUnusable):
        state.apply_all(recovered)
    assert state.is_one_that_was()


@pytest.mark.parametrize("segments", [1, 2])
def test_a_record_that_claims_to_be_large_costs_nothing(segments: int) -> None:
    disk = Disk()
    writer = LogWriter(disk, LOG, 0, 99)
    writer.commit(1, batch_of(1), sync=True)
    large = Gathered(arrays={("a",): (msgpack.packb((("a",), None)), np.zeros(1 << 20, np.uint8))})
    writer.commit(1, large, sync=True)
    if segments == 2:
        writer.commit(2, batch_of(3), sync=True)
    disk.overwrite(path_of(1), disk.contents(path_of(1))[: HEADER + 1000])
    tracemalloc.start()
    try:
        with suppress(CheckpointUnusable):
            read(disk)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# --- writes that failed


def test_what_failed_is_written_to_another_file_of_the_same_segment_and_supersedes_it() -> None:
    disk = Disk()
    disk.fail_syncs = frozenset({2, 3})
    writer = LogWriter(disk, LOG, 0, 99)
    writer.commit(1, batch_of(1), sync=True)
    for batch in (batch_of(2), Gathered()):
        with pytest.raises(OSError, match="Input/output error"):
            writer.commit(1, batch, sync=True)
    writer.commit(1, batch_of(3), sync=True)
    writer.commit(2, batch_of(4), sync=True)
    assert disk.names(LOG) == ["00000001-1.log", "00000001.log", "00000002.log"]
    assert read(disk)[1].numbers == [1, 2, 3, 4]
    for left in (disk.crash(random.Random(seed)) for seed in range(20)):
        assert read(left)[1].numbers == [1, 2, 3, 4]
    # What the first file has beyond its last sync does not matter.
    data = disk.contents(path_of(1))
    begin = records_of(data)[1][0]
    disk.overwrite(path_of(1), data[:begin] + b"?" * (len(data) - begin))
    assert read(disk)[1].numbers == [1, 2, 3, 4]
    # What it has before does.
    disk.overwrite(path_of(1), data[: begin - 1])
    with pytest.raises(CheckpointUnusable, match=f"{path_of(1)}, byte {HEADER}: "):
        read(disk)
    disk.remove(f"{LOG}/00000001-1.log")
    with pytest.raises(CheckpointUnusable, match=path_of(1)):
        read(disk)


def test_a_repairing_file_that_is_missing_is_named() -> None:
    disk = Disk()
    disk.fail_syncs = frozenset({2, 4})
    writer = LogWriter(disk, LOG, 0, 99)
    writer.commit(1, batch_of(1), sync=True)
    for number in (2, 3):
        with pytest.raises(OSError, match="Input/output error"):
            writer.commit(1, batch_of(number), sync=True)
        writer.commit(1, Gathered(), sync=True)
    assert read(disk)[1].numbers == [1, 2, 3]
    disk.remove(f"{LOG}/00000001-1.log")
    with pytest.raises(CheckpointUnusable, match=r"00000001-1\.log, byte 0: the file is missing"):
        read(disk)


@pytest.mark.parametrize("tells_free", [True, False])
async def test_a_full_disk_is_a_problem_until_there_is_room_again(
    tells_free: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "psserver.durability.log")
    room = RESERVE if tells_free else 0
    disk = Disk(capacity=room + 1000, tells_free=tells_free)
    async with begun(disk) as appender:
        log = appender.log
        await appender.append_and_wait()
        disk.capacity = room + 1100
        with failing(log) as failure:
            appender.append(3)
            failed = await failure.wait()
        assert isinstance(failed, LogUnwritable)
        assert "No space left on device" in str(failed)
        assert "make room" in str(failed)
        assert "disk/log/shard-0" in str(failed)
        assert appender.acknowledged == [1]
        if tells_free:
            assert disk.names(LOG) == ["00000001.log"]  # nothing was tried
        failures = log.failures
        disk.capacity = None
        await log.flush()
        assert (log.problem, appender.acknowledged) == (None, [1, 2, 3, 4])
        assert log.failures >= failures >= 1
    assert read(disk)[1].numbers == [1, 2, 3, 4]
    lines = [record.message for record in caplog.records if record.name == "psserver.durability.log"]
    assert len(lines) == 2
    assert "cannot be written" in lines[0]
    assert "can be written again" in lines[1]


async def test_who_cannot_wait_for_room_is_told_so() -> None:
    disk = Disk(capacity=RESERVE + 1000, tells_free=True)
    async with begun(disk) as appender:
        await appender.append_and_wait()
        disk.capacity = RESERVE
        appender.append(1)
        with pytest.raises(LogUnwritable, match="No space left"):
            await appender.log.flush(at_once=True)
        with pytest.raises(LogUnwritable, match="No space left"):
            await appender.log.flush(at_once=True)
        disk.capacity = None
        await appender.log.flush()
        await appender.log.flush(at_once=True)


class Failure(logging.Handler):
    """Waits until a log has a problem, which it tells once."""

    def __init__(self, log: UpdateLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log
        self._told = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._told.set()

    async def wait(self) -> LogUnwritable | None:
        await self._told.wait()
        return self._log.problem


@contextmanager
def failing(log: UpdateLog) -> Iterator[Failure]:
    failure, logger = Failure(log), logging.getLogger("psserver.durability.log")
    logger.addHandler(failure)
    yield failure
    logger.removeHandler(failure)


async def test_dropping_segments_makes_room_for_what_could_not_be_written() -> None:
    disk = Disk(tells_free=False)
    async with begun(disk) as appender:
        await appender.append_and_wait(3)
        await appender.append_and_wait(3)
        segment = appender.rotate()
        await appender.log.flush()
        disk.capacity = sum(disk.size(f"{LOG}/{name}") for name in disk.names(LOG)) + 100
        with failing(appender.log) as failure:
            appender.append(2)
            await failure.wait()
        appender.log.drop_before(segment)
        await appender.log.flush()
        assert appender.acknowledged == list(range(1, 9))
        assert disk.names(LOG)[0] == "00000002-1.log" or "00000001.log" not in disk.names(LOG)


async def test_what_failed_before_a_rotation_stays_before_it() -> None:
    disk = Disk()
    async with begun(disk, sync=NEVER) as appender:
        await appender.append_and_wait(2)
        await appender.append_and_wait()
        disk.fail_syncs = frozenset({disk._syncs + 1, disk._syncs + 2})
        appender.append()
        segment = appender.rotate()
        appender.append(2)
        await appender.log.flush()
        assert appender.log.failures == 2
    assert read(disk, segment)[1].numbers == [5, 6]
    assert read(disk)[1].numbers == [1, 2, 3, 4, 5, 6]
    assert [str(SegmentName(1, 0)), str(SegmentName(1, 1)), str(SegmentName(2, 0))] == sorted(
        disk.names(LOG), key=lambda name: SegmentName.parse(name) or name
    )


async def test_what_comes_while_a_write_fails_is_acknowledged_after_it() -> None:
    disk = Disk()
    async with begun(disk) as appender:
        disk.fail_at = {1: errno.EIO}
        appender.append()
        await asyncio.sleep(0)  # the thread has it now, and cannot have told of its failure yet
        appender.append()
        await appender.log.flush()
        assert (appender.acknowledged, appender.log.failures) == ([1, 2], 1)
    assert read(disk)[1].numbers == [1, 2]


async def test_closing_a_log_that_cannot_be_written_is_an_error_and_no_hang() -> None:
    disk = Disk()
    recovered, _ = read(disk)
    appender = Appender(new_log(disk, recovered, retry=1e6))
    await appender.append_and_wait()
    disk.capacity = 0
    disk.tells_free = False
    with failing(appender.log) as failure:
        appender.append()
        await failure.wait()
    with pytest.raises(LogUnwritable, match="No space left"):
        await appender.log.close()
    assert appender.acknowledged == [1]


async def test_closing_tries_at_once_what_waits_for_its_next_try() -> None:
    disk = Disk()
    recovered, _ = read(disk)
    appender = Appender(new_log(disk, recovered, retry=1e6))
    disk.fail_at = {2: errno.EIO}
    with failing(appender.log) as failure:
        appender.append()
        await failure.wait()
    await appender.log.close()
    assert (appender.acknowledged, appender.log.problem) == ([1], None)
    assert read(disk)[1].numbers == [1]


# --- appending


async def test_what_comes_while_the_disk_is_at_work_is_one_record_with_the_latest_arrays() -> None:
    disk = Disk()
    async with begun(disk) as appender:
        syncs = disk._syncs
        await appender.append_and_wait(100)
        assert disk._syncs - syncs == 1
        assert appender.acknowledged == list(range(1, 101))
    batches = list(recover(disk, LOG, 1))
    assert len(batches) == 1
    assert batches[0].events == list(range(1, 101))
    assert sorted(info for info, _ in batches[0].arrays.values()) == [98, 99, 100]


def note_last_step(disk: Disk, seen: list[str]) -> None:
    seen.append(disk.steps[-1][0])


async def test_an_acknowledgement_comes_after_the_sync_or_after_the_write() -> None:
    for sync, before in ((0.0, "sync"), (NEVER, "write")):
        disk = Disk()
        async with begun(disk, sync) as appender:
            await appender.append_and_wait()  # a new file is synced in any case
            seen: list[str] = []
            appender.log.append([2], then=partial(note_last_step, disk, seen))
            appender.last += 1
            await appender.append_and_wait()
            assert seen == [before]


async def test_with_an_interval_it_is_synced_by_itself() -> None:
    disk = Disk()
    synced: asyncio.Queue[float] = asyncio.Queue()
    log = UpdateLog(disk, LOG, sync=0.001, observe_sync=synced.put_nowait)
    log.begin(1, 0, 99)
    appender = Appender(log)
    await appender.append_and_wait()
    await synced.get()
    await appender.append_and_wait()
    assert await synced.get() >= 0
    for seed in range(5):
        assert read(disk.crash(random.Random(seed)))[1].numbers == [1, 2]
    await log.close()


async def test_when_durable_is_at_once_if_nothing_is_pending_and_in_order_otherwise() -> None:
    disk = Disk()
    async with begun(disk) as appender:
        said: list[str] = []
        appender.log.when_durable(lambda: said.append("at once"))
        assert said == ["at once"]
        appender.log.append([1], then=lambda: said.append("appended"))
        appender.log.when_durable(lambda: said.append("after it"))
        assert said == ["at once"]
        await appender.log.flush()
        assert said == ["at once", "appended", "after it"]


async def test_an_acknowledgement_that_fails_does_not_keep_the_others_from_coming() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    async with begun(Disk()) as appender:
        appender.append()
        appender.log.append([2], then=lambda: 1 // 0)  # type: ignore[arg-type]
        appender.last = 2
        appender.append()
        await appender.log.flush()
        assert appender.acknowledged == [1, 3]
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


async def test_an_acknowledgement_may_append() -> None:
    disk = Disk()
    async with begun(disk) as appender:
        appender.log.append([1], then=lambda: appender.log.append([2], then=last.set))
        last = asyncio.Event()
        await last.wait()
    assert [event for batch in recover(disk, LOG, 1) for event in batch.events] == [1, 2]


@pytest.mark.parametrize("bad", [object(), 2**64, {"a": object()}, "\ud800"])
async def test_what_msgpack_cannot_carry_is_refused_and_nothing_of_it_is_appended(bad: object) -> None:
    disk = Disk()
    async with begun(disk) as appender:
        await appender.append_and_wait()
        for refused in ({"events": [7, bad]}, {"events": [7], "arrays": {("a", 9): (bad, array_of(9))}}):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                appender.log.append(**refused)
        await appender.append_and_wait()
    assert read(disk)[1].numbers == [1, 2]


async def test_a_document_that_cannot_be_made_is_a_problem_until_it_can() -> None:
    disk, documents = Disk(), iter([object(), object(), {"x": 1}])
    async with begun(disk) as appender:
        acknowledged = asyncio.Event()
        with failing(appender.log) as failure:
            appender.log.append([1], docs={("d",): partial(next, documents)}, then=acknowledged.set)
            assert await failure.wait() is not None
        assert not acknowledged.is_set()
        await acknowledged.wait()
        assert (appender.log.problem, appender.log.failures) == (None, 2)
    assert [(batch.events, batch.docs) for batch in recover(disk, LOG, 1)] == [([1], {("d",): {"x": 1}})]


async def test_a_document_is_asked_for_once_and_late_but_not_after_a_rotation() -> None:
    disk, asked = Disk(), 0

    def document() -> int:
        nonlocal asked
        asked += 1
        return asked

    async with begun(disk) as appender:
        appender.log.append([1], docs={("d",): document})
        appender.log.append([2], docs={("d",): document})
        assert asked == 0
        appender.rotate()
        assert asked == 1
        await appender.log.flush()
        assert asked == 1
    assert [(batch.events, batch.docs) for batch in recover(disk, LOG, 1)] == [([1, 2], {("d",): 1})]


async def test_rotating_twice_makes_two_segments_and_dropping_removes_whole_ones() -> None:
    disk = Disk()
    async with begun(disk) as appender:
        appender.append(2)
        assert (appender.rotate(), appender.rotate()) == (2, 3)
        appender.append()
        await appender.log.flush()
        assert disk.names(LOG) == ["00000001.log", "00000002.log", "00000003.log"]
        thread = threading.Thread(target=appender.log.drop_before, args=(3,))
        thread.start()
        thread.join()
        await appender.log.flush()
        await appender.append_and_wait()
        assert disk.names(LOG) == ["00000003.log"]
        appender.log.drop_before(9)  # those that are not there yet stay
        await appender.append_and_wait()
        assert disk.names(LOG) == ["00000003.log"]
    assert read(disk, 3)[1].numbers == [3, 4, 5]


async def test_old_segments_that_cannot_be_removed_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "psserver.durability.log")
    disk = Disk()
    async with begun(disk) as appender:
        await appender.append_and_wait()
        segment = appender.rotate()
        await appender.log.flush()
        disk.fail_at = {len(disk.steps) + 3: errno.EPERM}
        appender.log.drop_before(segment)
        await appender.append_and_wait()
        await appender.append_and_wait()
        assert ("unlink", path_of(1)) in disk.steps
        assert "old segments in disk/log/shard-0 stay for now" in caplog.text
        assert appender.log.problem is None
    assert read(disk, segment)[1].numbers == [2, 3]


async def test_a_closed_log_writes_nothing_more_and_says_so() -> None:
    disk = Disk()
    recovered, _ = read(disk)
    appender = Appender(new_log(disk, recovered))
    appender.append()
    await appender.log.close()
    await appender.log.close()
    steps = len(disk.steps)
    appender.append()
    with pytest.raises(RuntimeError, match="closed"):
        await appender.log.flush()
    assert (len(disk.steps), appender.acknowledged) == (steps, [1])


async def test_a_log_in_which_nothing_was_written_leaves_no_file() -> None:
    disk = Disk()
    async with begun(disk):
        pass
    assert disk.steps == []


async def test_a_log_on_a_real_disk_comes_back_again_and_again(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for life_number in range(3):
        async with begun(storage, sync=life_number % 2) as appender:
            await appender.append_and_wait(5)
            appender.rotate()
            appender.append(3)
            await appender.log.flush()
            assert appender.log.position > 0
    recovered, state = read(storage)
    assert state.is_one_that_was()
    assert (len(state.numbers), recovered.cut, recovered.segment) == (24, None, 7)


@pytest.mark.parametrize("name", sorted(name for name in failpoints.NAMES if name.startswith("log.")))
async def test_an_error_at_any_failpoint_is_a_failed_write(name: str) -> None:
    disk = Disk()
    failpoints.configure(f"{name}=error:EIO@2-3")
    try:
        async with begun(disk) as appender:
            for _ in range(4):
                await appender.append_and_wait(2)
                appender.log.drop_before(appender.rotate())
            await appender.log.flush()
            assert appender.acknowledged == list(range(1, 9))
            assert appender.log.failures == (0 if name == "log.drop-segment" else 2)
    finally:
        failpoints.configure("")
    for seed in range(5):
        left = disk.crash(random.Random(seed))
        segment = min(
            segment for segment in range(1, 6) if path_of(segment).split("/")[-1] in left.names(LOG)
        )
        assert read(left, segment)[1].is_one_that_was(2 * (segment - 1))
