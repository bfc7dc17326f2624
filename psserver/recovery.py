"""What a server is when it starts: whatever its disk says that it was, exactly, or else nothing yet.

log         the newest complete checkpoint of its own part, and all that its log says came after
snapshot    the checkpoint with which it stopped cleanly; if it did not, the cluster goes back to one

A server that had no log and is to have one begins as ``snapshot`` does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from protocol.errors import BadRequest, CheckpointUnusable
from protocol.events import about
from psserver.coordinated_job import Job
from psserver.coordinator_state import replay_job, restored_jobs
from psserver.durability import checkpoint
from psserver.durability.log import Batch
from psserver.durability.storage import Storage
from psserver.membership import FailureSettings
from psserver.persistence import Persistence
from psserver.shard import Shard

__all__ = ["CLUSTER", "Recovered", "cluster_doc", "recover"]

_log = logging.getLogger(__name__)

CLUSTER: Final = ("cluster",)
"""The key of the document that tells whose log it is."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Recovered:
    """What a server has found of itself.

    Attributes:
        cluster: whose state it is; "" if there is none.
        timeline: what it is of; 0 if there is none.
        lost: the newest part may be missing.
        unlogged: its update log goes on from the state with which it stopped, which must be kept as long as
            no checkpoint has taken its place.
        jobs: the coordinator's.
        issued: no incarnation above it was of a job that was dropped.
    """

    cluster: str = ""
    timeline: int = 0
    lost: bool = False
    unlogged: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    issued: int = 0


def cluster_doc(cluster: str, timeline: int) -> dict[str, Any]:
    """Return the document that tells whose log it is, and since which start of the machine."""
    return {"cluster": cluster, "timeline": timeline, "boot": _boot_id()}


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # unknown: as if the machine had been started anew


def recover(
    persistence: Persistence, shard: Shard, shards: int, failure: FailureSettings, now: float
) -> Recovered:
    """Have ``shard``, which knows its number, take up what it was, and return the rest of it; blocks.

    Args:
        persistence: its storage.
        shard: empty so far.
        shards: of the cluster, as far as it is known; 0: it is not.
        failure: when silence is death.
        now: the time.

    Raises:
        CheckpointUnusable: there is something, and it cannot be read.
    """
    if persistence.settings.mode == "log":
        return _from_log(persistence, shard, shards, failure, now)
    if persistence.has_log(shard.number):
        raise CheckpointUnusable(
            "there is an update log of this shard; start with --durability log, or move the log away",
            field="checkpoint-dir",
            value=f"{persistence.storage.root}/{persistence.log_directory(shard.number)}",
        )
    return _from_clean_stop(persistence, shard, shards, failure, now)


def _from_clean_stop(
    persistence: Persistence, shard: Shard, shards: int, failure: FailureSettings, now: float
) -> Recovered:
    stopped = persistence.stopped(shard.number)
    if stopped is None:
        return Recovered()
    storage = persistence.stopped_in(shard.number, stopped)
    try:
        state, arrays = checkpoint.load_shard(storage, stopped.checkpoint, shard.number)
        if shards and state.header.shards != shards:  # it has to be loaded on another number of shards
            if stopped.alone:
                _log.warning("the state with which this shard stopped is of %d shards", state.header.shards)
            return Recovered()
        jobs, issued = _coordinators_jobs(storage, shard, stopped.checkpoint, shards, failure, now)
        shard.install(state.state, arrays)
    except (CheckpointUnusable, BadRequest) as error:
        _log.error(
            "the state with which this shard stopped is not usable: %s", error,
            extra=about("checkpoint.unusable"),
        )  # fmt: skip
        shard.replace((), {}, {})
        return Recovered()
    return Recovered(stopped.cluster, stopped.timeline, jobs=jobs, issued=issued)


def _coordinators_jobs(
    storage: Storage, shard: Shard, number: int, shards: int, failure: FailureSettings, now: float
) -> tuple[dict[str, Job], int]:
    """Return the coordinator's jobs, and the highest incarnation of those that were dropped."""
    if shard.number:
        return {}, 0
    state = checkpoint.read_coordinator_state(storage, number).state
    return restored_jobs(state, shards, failure, now), int(state.get("issued", 0))


def _from_log(
    persistence: Persistence, shard: Shard, shards: int, failure: FailureSettings, now: float
) -> Recovered:
    found = Recovered()
    base = persistence.newest_own(shard.number, shards or None)
    segment = 1 if base is None else _segment(base[1].state, base[0].header.checkpoint)
    if base is not None and segment is not None and persistence.has_log(shard.number, segment):
        manifest, state, arrays = base
        number = manifest.header.checkpoint
        found.jobs, found.issued = _coordinators_jobs(
            persistence.storage, shard, number, manifest.header.shards, failure, now
        )
        found.cluster, found.timeline = manifest.header.cluster, manifest.header.timeline
        shard.install(state.state, arrays)
    elif base is not None and segment is not None:
        _log.error(
            "the update log that goes on from checkpoint %d is not in %s",
            base[0].header.checkpoint, persistence.log_directory(shard.number),
        )  # fmt: skip
    elif base is not None or persistence.stopped(shard.number) is not None:
        found = _from_clean_stop(persistence, shard, shards, failure, now)
        found.unlogged = bool(found.timeline)
    is_lost = base is not None and not found.timeline

    def replay(batch: Batch) -> None:
        if is_lost:
            return
        _replay_cluster(batch.docs, found, persistence.settings.log_sync)
        shard.replay(batch)
        if not shard.number:
            found.issued = max(found.issued, replay_job(batch, found.jobs, shards, failure, now))

    try:
        shard.journal.log = persistence.open_log(shard.number, segment or 1, replay)
    except BadRequest as error:
        raise CheckpointUnusable(
            f"the update log was damaged or written by another version: {error}",
            field="log",
            value=persistence.log_directory(shard.number),
        ) from error
    return found


def _segment(state: Mapping[str, Any], number: int) -> int | None:
    """Return the segment that begins at a checkpoint; None: it was taken without a log."""
    segment = state.get("segment")
    if segment is None:
        return None
    if type(segment) is not int or segment < 1:
        raise CheckpointUnusable(
            f"checkpoint {number} names no segment of the log", field="segment", value=segment
        )
    return segment


def _replay_cluster(docs: Mapping[Any, Any], found: Recovered, log_sync: float) -> None:
    document = docs.get(CLUSTER)
    if document is None:
        return
    found.cluster, found.timeline = document["cluster"], document["timeline"]
    # Within a second of a power failure; the death of a process loses nothing that was written.
    found.lost = bool(log_sync) and (not document["boot"] or document["boot"] != _boot_id())
