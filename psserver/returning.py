"""Which checkpoint a job goes back to that has diverged.

A checkpoint never holds what is not finite, but one that was taken while the loss exploded leads there
again. So a job goes back to the newest; and if it diverges once more before another is taken, to the one
before. Each return is to a new timeline, whose first checkpoint is a copy of what was gone back to.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import CheckpointUnusable
from protocol.status import Return
from psserver.durability import checkpoint, directories
from psserver.durability.manifest import Manifest
from psserver.durability.storage import Storage

__all__ = ["checkpoints_of"]


def checkpoints_of(
    storage: Storage, job: str, born: int, returns: Sequence[Return], timeline: int
) -> list[int]:
    """Return the checkpoints that a job may go back to now, the best of them last; blocks.

    Args:
        storage: where they are.
        job: its name.
        born: its own, as in ``protocol.messages.KeptJob``; a former job of that name had another.
        returns: how it has gone back before, the latest last.
        timeline: that of the cluster's state.
    """
    manifests = [
        one for one in _manifests(storage) if any((has.name, has.born) == (job, born) for has in one.jobs)
    ]
    numbers = [one.header.checkpoint for one in manifests]
    newer = sum(one.header.timeline == timeline for one in manifests) > 1  # than the copy
    if not returns or returns[-1].timeline != timeline or newer:
        return numbers
    return [number for number in numbers if number < returns[-1].checkpoint] or numbers


def _manifests(storage: Storage) -> list[Manifest]:
    found: list[Manifest] = []
    for number in directories.numbers(storage):
        if directories.is_complete(storage, number):
            try:
                found.append(checkpoint.read_manifest(storage, number))
            except CheckpointUnusable:
                continue  # whoever wants that one is told
    return found
