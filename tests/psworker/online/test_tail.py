import asyncio
import logging
import os
from pathlib import Path

import pytest

from psworker.errors import DataError
from psworker.online.place import Place, mark_of
from psworker.online.records import Stream
from psworker.online.tail import TailFiles


async def opened(path: Path, skip: int = 0, *, header: bool = False) -> Stream:
    return await TailFiles([str(path)], header=header, look_every=0.001).open(0, skip)


async def lines(stream: Stream, count: int) -> tuple[list[str], int]:
    """Read as many lines as said, and no more; return them and the offset after them."""
    found: list[str] = []
    offset = 0
    async with asyncio.timeout(20):
        while len(found) < count:
            records = await stream.read()
            found += [record.text.decode() for record in records]
            offset = records[-1].offset
    assert len(found) == count
    return found, offset


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("a\nb\n")
    return path


async def test_what_is_there_and_what_is_added(log: Path) -> None:
    stream = await opened(log)
    assert (await lines(stream, 2))[0] == ["a", "b"]
    reading = asyncio.create_task(lines(stream, 1))
    await asyncio.sleep(0)
    append(log, "c\nhalf")
    assert (await reading)[0] == ["c"]
    append(log, " d\n")
    assert (await lines(stream, 1))[0] == ["half d"]
    await stream.close()


async def test_who_comes_later_goes_on_where_the_other_was(log: Path) -> None:
    first = await opened(log)
    _, offset = await lines(first, 2)
    await first.close()
    assert Place.of(offset).byte == 4
    append(log, "c\nd\n")
    second = await opened(log, offset)
    assert (await lines(second, 2))[0] == ["c", "d"]
    await second.close()


async def test_from_the_middle_of_what_was_read_at_once(log: Path) -> None:
    stream = await opened(log)
    (record, _) = await stream.read()
    await stream.close()
    again = await opened(log, record.offset)
    assert (await lines(again, 1))[0] == ["b"]
    await again.close()


async def test_a_file_that_is_renamed_is_read_to_its_end_and_then_the_new_one(log: Path) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    append(log, "c\nlast")
    rename(log, "log.1")
    write(log, "d\n")
    found, offset = await lines(stream, 3)
    assert found == ["c", "last", "d"]
    assert Place.of(offset)[:2] == (1, 2)
    await stream.close()


async def test_renamed_twice_between_two_looks(log: Path) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    rename(log, "log.2")
    os.utime(log.with_name("log.2"), ns=(1, 1))
    write(log, "c\n")
    rename(log, "log.1")
    os.utime(log.with_name("log.1"), ns=(2, 2))
    write(log, "d\n")
    assert (await lines(stream, 2))[0] == ["c", "d"]
    await stream.close()


async def test_renamed_while_nobody_read(log: Path) -> None:
    first = await opened(log)
    record, _ = await first.read()
    await first.close()
    rename(log, "log-20261128")
    write(log, "c\n")
    second = await opened(log, record.offset)
    found, offset = await lines(second, 2)
    assert found == ["b", "c"]
    assert Place.of(offset).file == 1
    await second.close()


async def test_other_files_beside_it_are_not_its_successors(log: Path) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    for name in ("log.gz", "log.1.gz", "log.bak", "logs", "log-old"):
        write(log.with_name(name), "wrong\n")
    rename(log, "log.1")
    write(log, "c\n")
    assert (await lines(stream, 1))[0] == ["c"]
    await stream.close()


async def test_what_has_gone_is_said_to_be_lost(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = await opened(log)
    _, offset = await lines(first, 2)
    await first.close()
    rename(log, "kept")
    write(log, "c\n")
    with caplog.at_level(logging.WARNING):
        second = await opened(log, offset)
    assert (await lines(second, 1))[0] == ["c"]
    assert "the file that was read up to byte 4 is not there any more" in caplog.text
    assert caplog.records[0].__dict__["event"] == "stream.lost"
    await second.close()


async def test_a_file_that_is_cut_is_read_from_its_beginning(log: Path) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    write(log, "c\n")
    found, offset = await lines(stream, 1)
    assert found == ["c"]
    assert Place.of(offset)[:2] == (1, 2)
    await stream.close()


def copy_and_cut(log: Path, name: str) -> None:
    write(log.with_name(name), log.read_text())
    os.truncate(log, 0)


async def test_a_file_that_is_cut_is_said_to_be(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    write(log, "c\n")
    await lines(stream, 1)
    assert "log: the file was cut; what was not read of it is left out" in caplog.text
    await stream.close()


async def test_a_file_that_is_cut_and_longer_than_before_at_the_next_look(log: Path) -> None:
    stream = await opened(log)
    await lines(stream, 2)
    write(log, "c\nd\ne\n")
    found, offset = await lines(stream, 3)
    assert found == ["c", "d", "e"]
    assert Place.of(offset)[:2] == (1, 6)
    await stream.close()


async def test_of_a_file_that_is_copied_and_cut_nothing_is_lost(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(log, "half")
    stream = await opened(log)
    await lines(stream, 2)
    append(log, " and half\nc\n")
    copy_and_cut(log, "log.1")
    append(log, "d\n")
    copy_and_cut(log, "log.0")
    os.utime(log.with_name("log.1"), ns=(1, 1))
    append(log, "e\n")
    found, offset = await lines(stream, 4)
    assert found == ["half and half", "c", "d", "e"]
    assert Place.of(offset)[:2] == (2, 2)
    assert caplog.records == []
    await stream.close()


async def test_copied_cut_and_grown_again_while_nobody_read(log: Path) -> None:
    first = await opened(log)
    record, _ = await first.read()
    await first.close()
    copy_and_cut(log, "log.1")
    append(log, "x\ny\nz\n")  # longer than it was
    second = await opened(log, record.offset)
    assert (await lines(second, 4))[0] == ["b", "x", "y", "z"]
    await second.close()


async def test_another_file_of_the_same_inode_is_another_file(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = await opened(log)
    _, offset = await lines(first, 2)
    await first.close()
    inode = os.stat(log).st_ino
    write(log, "x\ny\nz\n")
    assert os.stat(log).st_ino == inode
    second = await opened(log, offset)
    assert (await lines(second, 3))[0] == ["x", "y", "z"]
    assert "the file that was read up to byte 4 is not there any more" in caplog.text
    await second.close()


async def test_a_place_within_a_line_is_no_place(log: Path) -> None:
    place = Place(0, 4, mark_of(b"abcd", b"abcd"))
    write(log, "abcdef\n")
    stream = await opened(log, place.offset)
    assert (await lines(stream, 1))[0] == ["abcdef"]
    await stream.close()


async def test_long_files_are_known_by_their_beginning_and_the_place(log: Path) -> None:
    text = "".join(f"{number}\n" for number in range(3000))
    write(log, text)
    first = await opened(log)
    record = (await first.read())[1999]
    await first.close()
    write(log, "9" + text[1:])
    rename(log, "log.2")
    write(log, text)
    rename(log, "log.1")
    write(log, text[:-2] + "\n")
    second = await opened(log, record.offset)  # the same up to there: as good as any
    assert (await lines(second, 1000))[0][0] == "2000"
    await second.close()
    write(log, text.replace("1990", "same"))
    third = await opened(log, record.offset)
    found, offset = await lines(third, 1000 + 3000)
    assert found[:1000] == [str(number) for number in range(2000, 3000)]
    assert Place.of(offset).file == 1
    await third.close()


async def test_renamed_and_packed_before_all_of_what_follows_was_read(log: Path) -> None:
    write(log.with_name("log.9"), "old\n")
    os.utime(log.with_name("log.9"), ns=(1, 1))
    stream = await opened(log)
    await lines(stream, 2)
    os.remove(log)  # packed, as log.3.gz
    for number, name in ((2, "log.2"), (3, "log.1")):
        write(log.with_name(name), f"{name}\n")
        os.utime(log.with_name(name), ns=(2**62, 2**62 + number))
    write(log, "c\n")
    assert (await lines(stream, 3))[0] == ["log.2", "log.1", "c"]
    await stream.close()


async def test_a_name_that_is_free_for_a_moment(log: Path) -> None:
    streams = TailFiles([str(log)], header=False, look_every=0.001)
    text = "a\nb\n"
    os.remove(log)
    opening = asyncio.create_task(streams.open(0, 0))
    await asyncio.sleep(0)
    write(log, text)
    stream = await opening
    assert (await lines(stream, 2))[0] == ["a", "b"]
    await stream.close()


async def test_where_a_line_is(log: Path) -> None:
    stream = await opened(log)
    (_, second) = await stream.read()
    assert stream.position(second).path == f"{log}, line up to byte 4"
    await stream.close()


async def test_the_header_is_no_example_wherever_one_begins(log: Path) -> None:
    first = await opened(log, header=True)
    found, offset = await lines(first, 1)
    assert (first.header, found) == ("a", ["b"])
    await first.close()
    append(log, "c\n")
    second = await opened(log, offset, header=True)
    assert (second.header, (await lines(second, 1))[0]) == ("a", ["c"])
    await second.close()


async def test_each_file_has_the_header(log: Path) -> None:
    stream = await opened(log, header=True)
    await lines(stream, 1)
    rename(log, "log.1")
    write(log, "a\nc\n")
    assert (await lines(stream, 1))[0] == ["c"]
    rename(log, "log.2")
    write(log, "other\nd\n")
    with pytest.raises(DataError, match="the header was 'a' and is 'other'"):
        await lines(stream, 1)
    await stream.close()


async def test_the_header_may_be_written_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, "")
    opening = asyncio.create_task(opened(path, header=True))
    await asyncio.sleep(0)
    append(path, "x,")
    append(path, "y\n1,2\n")
    stream = await opening
    assert (stream.header, (await lines(stream, 1))[0]) == ("x,y", ["1,2"])
    await stream.close()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory; correct"):
        TailFiles([str(tmp_path / "none")], header=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        TailFiles([str(tmp_path / "pipe")], header=False)
