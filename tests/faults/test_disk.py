import errno
import random

import pytest

from psserver.durability.storage import Storage, read_all
from tests.faults.disk import PAGE, Died, Disk

SEEDS = range(200)


def crashes(disk: Disk) -> list[Disk]:
    return [disk.crash(random.Random(seed)) for seed in SEEDS]


def contents(disk: Disk, path: str) -> bytes | None:
    return disk.contents(path) if path in disk.names("") else None


def written(*pieces: bytes, synced: int) -> Disk:
    """A disk with a file of these pieces, written one by one; the first ``synced`` are durable."""
    disk = Disk()
    file = disk.create("f")
    for number, piece in enumerate(pieces, 1):
        file.write([piece])
        if number == synced:
            file.sync()
    return disk


def test_it_is_a_storage() -> None:
    storage: Storage = Disk()
    storage.create("a/b/1").write([b"one", bytearray(b" two"), memoryview(b" three")])
    storage.publish("a/2", b"x")
    assert (storage.names(""), storage.names("a"), storage.names("a/b")) == (["a"], ["2", "b"], ["1"])
    assert storage.names("nowhere") == []
    assert read_all(storage, "a/b/1", 100) == b"one two three"
    assert storage.size("a/2") == 1
    storage.remove("a")
    storage.remove("a")
    assert storage.names("") == []
    with pytest.raises(FileNotFoundError):
        storage.open("a/2")


def test_what_was_synced_survives_every_crash() -> None:
    disk = written(b"a" * 5000, b"b" * 5000, synced=2)
    assert {contents(left, "f") for left in crashes(disk)} == {b"a" * 5000 + b"b" * 5000}


def test_of_what_was_not_synced_all_nothing_a_beginning_or_some_pages_survive() -> None:
    disk = written(b"a" * PAGE, b"b" * 3 * PAGE, synced=1)
    found = [contents(left, "f") for left in crashes(disk)]
    assert all(data is not None and data.startswith(b"a" * PAGE) for data in found)
    tails = {data[PAGE:] for data in found if data is not None}
    assert tails >= {b"", b"b" * 3 * PAGE}
    assert any(0 < len(tail) < 3 * PAGE and set(tail) == {ord("b")} for tail in tails)
    assert b"\0" * PAGE + b"b" * 2 * PAGE in tails


def test_a_name_that_was_not_synced_may_be_gone() -> None:
    found = [contents(left, "f") for left in crashes(written(b"a", synced=0))]
    assert set(found) == {None, b"", b"a", b"\0"}


def test_a_remove_that_was_not_synced_may_be_undone() -> None:
    disk = written(b"a", synced=1)
    disk.fail_at = {len(disk.steps) + 2: errno.EIO}
    with pytest.raises(OSError, match="Input/output error"):
        disk.remove("f")
    assert disk.steps[-2:] == [("unlink", "f"), ("sync names", "f")]
    assert {contents(left, "f") for left in crashes(disk)} == {None, b"a"}


def test_a_file_that_is_made_anew_is_the_former_or_the_new_one() -> None:
    disk = written(b"old", synced=1)
    disk.create("f").write([b"newer"])
    assert {contents(left, "f") for left in crashes(disk)} >= {b"old", b"", b"newer"}


@pytest.mark.parametrize("step", range(1, 8))
def test_publishing_is_all_or_nothing_at_every_step(step: int) -> None:
    disk = Disk()
    disk.publish("f", b"old")
    assert [what for what, _ in disk.steps] == ["create", "write", "sync", "rename", "sync names"]
    disk.die_at = len(disk.steps) + step
    try:
        disk.publish("f", b"new")
    except Died:
        assert step <= 5
    expected = {b"new"} if step > 5 else {b"old"} if step < 5 else {b"old", b"new"}
    assert {contents(left, "f") for left in crashes(disk)} == expected


def test_a_failed_sync_loses_its_pages_and_the_next_one_does_not_know() -> None:
    disk = Disk()
    disk.fail_syncs = frozenset({2})
    file = disk.create("f")
    file.write([b"a" * PAGE])
    file.sync()
    file.write([b"b" * PAGE])
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    file.write([b"c" * PAGE])
    file.sync()
    assert disk.contents("f") == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE
    lost, kept = (b"a" * PAGE + middle * PAGE + b"c" * PAGE for middle in (b"\0", b"b"))
    assert {contents(left, "f") for left in crashes(disk)} == {lost, kept}


def test_syncing_by_name_covers_what_another_process_wrote() -> None:
    disk = written(b"a", synced=0).killed()
    assert disk.contents("f") == b"a"
    disk.sync("f")
    assert {contents(left, "f") for left in crashes(disk)} == {b"a"}


def test_a_full_disk_takes_what_fits() -> None:
    disk = Disk(capacity=10)
    file = disk.create("f")
    file.write([b"1234567"])
    assert disk.free() == 3
    with pytest.raises(OSError, match="No space left") as caught:
        file.write([b"89abc"])
    assert (caught.value.errno, disk.contents("f"), disk.free()) == (errno.ENOSPC, b"123456789a", 0)
    disk.remove("f")
    assert disk.free() == 10
    assert Disk(capacity=10, tells_free=False).free() is None


def test_a_step_that_fails_is_not_done_and_the_next_one_is() -> None:
    disk = Disk()
    disk.fail_at = {2: errno.EDQUOT}
    file = disk.create("f")
    with pytest.raises(OSError, match="quota"):
        file.write([b"1"])
    file.write([b"2"])
    assert disk.contents("f") == b"2"


def test_nothing_works_after_death() -> None:
    disk = written(b"a", synced=1)
    disk.die_at = len(disk.steps) + 1
    with pytest.raises(Died):
        disk.create("g")
    for operation in (lambda: disk.names(""), lambda: disk.size("f"), disk.free, lambda: disk.remove("f")):
        with pytest.raises(Died):
            operation()
    assert {contents(left, "f") for left in crashes(disk)} == {b"a"}
