from collections.abc import Iterator
from pathlib import Path

import pytest

from psserver.durability.checkpoint import newest_usable, verify
from psserver.durability.directories import (
    directory_of,
    is_complete,
    next_number,
    number_of,
    numbers,
    prune,
    remove_incomplete,
)
from psserver.durability.failpoints import configure
from psserver.durability.storage import LocalStorage
from tests.psserver.durability.made_up import write


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


@pytest.fixture
def failpoints() -> Iterator[None]:
    yield
    configure("")


def begin(storage: LocalStorage, number: int) -> None:
    storage.create(f"{directory_of(number)}/shard-0.safetensors").close()


@pytest.mark.parametrize("number", [1, 12, 99_999_999, 100_000_000, 10**17])
def test_a_number_s_directory_is_of_that_number(number: int) -> None:
    assert number_of(directory_of(number)) == number


@pytest.mark.parametrize(
    "name",
    [
        "", "log", "checkpoint", "checkpoint-", "checkpoint-1", "checkpoint-00000000", "checkpoint-0000001x",
        "checkpoint-000000001", "xcheckpoint-00000001", "checkpoint-00000001.new", "checkpoint-00000001\n",
        "checkpoint--0000001", "checkpoint-" + "\u0661" * 8, "checkpoint-" + "9" * 5000,
    ],
)  # fmt: skip
def test_other_names_are_of_none(name: str) -> None:
    assert number_of(name) is None


def test_numbers_are_those_of_all_that_were_begun(storage: LocalStorage) -> None:
    assert (numbers(storage), next_number(storage)) == ([], 1)
    write(storage, 3, ())
    begin(storage, 100_000_000)
    begin(storage, 20)
    storage.create("log/shard-0/00000001.log").close()
    assert (numbers(storage), next_number(storage)) == ([3, 20, 100_000_000], 100_000_001)
    assert [is_complete(storage, number) for number in (3, 20, 4)] == [True, False, False]


def test_a_file_with_the_name_of_a_checkpoint_is_none(storage: LocalStorage) -> None:
    write(storage, 1, ())
    storage.create("checkpoint-00000002").close()
    assert numbers(storage) == [1, 2]
    assert not is_complete(storage, 2)
    newest = newest_usable(storage, report=lambda _: None)
    assert newest is not None
    assert newest.header.checkpoint == 1
    write(storage, 3, ())
    assert prune(storage, 2) == [2]


@pytest.mark.parametrize(
    ("keep", "also", "gone"),
    [
        (1, (), [1, 2, 3, 4, 5]),
        (2, (), [1, 2, 3, 5]),
        (3, (), [1, 3, 5]),
        (4, (), [3, 5]),
        (9, (), [3, 5]),
        (1, (2, 9), [1, 3, 4, 5]),
        (2, (3, 4), [1, 2, 5]),
    ],
)
def test_the_oldest_go_and_what_was_given_up(
    storage: LocalStorage, keep: int, also: tuple[int, ...], gone: list[int]
) -> None:
    for number in (1, 2, 4, 6):
        write(storage, number, (), shards=1)
    for number in (3, 5, 7):  # 7 is being written
        begin(storage, number)
    assert prune(storage, keep, also_keep=also) == gone
    assert numbers(storage) == [number for number in range(1, 8) if number not in gone]
    assert all(verify(storage, number) == [] for number in (1, 2, 4, 6) if number not in gone)
    assert prune(storage, keep, also_keep=also) == []
    assert next_number(storage) == 8


def test_before_the_first_complete_one_nothing_goes(storage: LocalStorage) -> None:
    for number in (1, 2):
        begin(storage, number)
    assert prune(storage, 1) == []
    assert numbers(storage) == [1, 2]


def test_one_stays(storage: LocalStorage) -> None:
    with pytest.raises(ValueError, match="keep=0"):
        prune(storage, 0)


@pytest.mark.usefixtures("failpoints")
def test_one_that_is_half_removed_is_incomplete_and_goes_the_next_time(storage: LocalStorage) -> None:
    for number in (1, 2, 3):
        write(storage, number, (), shards=1)
    configure("checkpoint.prune=error:EIO@2")
    with pytest.raises(OSError, match=r"failpoint checkpoint\.prune"):
        prune(storage, 1)
    assert numbers(storage) == [2, 3]
    assert [is_complete(storage, number) for number in (2, 3)] == [False, True]
    assert prune(storage, 1) == [2]
    assert verify(storage, 3) == []


def test_what_was_given_up_makes_room(storage: LocalStorage) -> None:
    write(storage, 2)
    for number in (1, 3, 4, 5):
        begin(storage, number)
    remove_incomplete(storage, below=5)
    assert numbers(storage) == [2, 5]
    assert newest_usable(storage, report=print) is not None
