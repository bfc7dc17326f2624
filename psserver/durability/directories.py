"""The directories of a storage's checkpoints: which there are, and which are no longer needed."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import MANIFEST_FILE
from psserver.durability.storage import Storage

__all__ = ["directory_of", "is_complete", "next_number", "number_of", "numbers", "prune", "remove_incomplete"]

_DIRECTORY: Final = re.compile(r"checkpoint-([0-9]{8,18})")


def directory_of(number: int) -> str:
    """Return the directory of a checkpoint."""
    return f"checkpoint-{number:08d}"


def number_of(directory: str) -> int | None:
    """Return the number of the checkpoint of which this is the directory; None if it is of none."""
    match = _DIRECTORY.fullmatch(directory)
    number = int(match[1]) if match else 0
    return number if number and directory == directory_of(number) else None


def is_complete(storage: Storage, number: int) -> bool:
    """Return whether a checkpoint has a manifest. It may be damaged all the same.

    Raises:
        OSError: the storage cannot be read now.
    """
    return MANIFEST_FILE in storage.names(directory_of(number))


def numbers(storage: Storage) -> list[int]:
    """Return the numbers of all checkpoints, complete or not, the oldest first.

    Raises:
        OSError: the storage cannot be read now.
    """
    found = map(number_of, storage.names(""))
    return sorted(number for number in found if number is not None)


def next_number(storage: Storage) -> int:
    """Return the number of the next checkpoint: no other has it, not even one that was given up.

    Raises:
        OSError: the storage cannot be read now.
    """
    return max(numbers(storage), default=0) + 1


def remove_incomplete(storage: Storage, below: int) -> None:
    """Remove the checkpoints with numbers below ``below`` that are not complete, and that nobody is writing.

    Raises:
        OSError: one cannot be removed; call it again.
    """
    for number in numbers(storage):
        if number < below and not is_complete(storage, number):
            storage.remove(directory_of(number))


def prune(storage: Storage, keep: int, *, also_keep: Collection[int] = ()) -> list[int]:
    """Remove what is no longer needed, and return the numbers: one that is half removed is incomplete.

    Args:
        storage: where the checkpoints are.
        keep: the newest complete ones that stay, 1 or more. Older incomplete ones go, newer ones are
            being written.
        also_keep: others that stay.

    Raises:
        OSError: something cannot be removed; call it again.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint stays")
    there = numbers(storage)
    complete = [number for number in there if is_complete(storage, number)]
    kept = {*complete[-keep:], *also_keep}
    gone = [number for number in there if complete and number < complete[-1] and number not in kept]
    for number in gone:
        storage.remove(f"{directory_of(number)}/{MANIFEST_FILE}")
        failpoint("checkpoint.prune")
        storage.remove(directory_of(number))
    return gone
