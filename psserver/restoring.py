"""What each shard is to load so that a cluster becomes what a checkpoint says, on any number of shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.messages import KeptJob, LoadedJob, LoadedTensor, LoadPlan, Spec
from protocol.optimizers import optimizer_from_spec
from psserver.coordinated_job import Job
from psserver.coordinator_state import restored_jobs
from psserver.durability import checkpoint
from psserver.durability.manifest import Manifest
from psserver.durability.storage import Storage
from psserver.incarnations import first_incarnation
from psserver.membership import FailureSettings
from psserver.optimizers import rule_of
from psserver.placement import load_of, place_tensor

__all__ = ["Restored", "nothing", "read"]


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint as the coordinator takes it up: its jobs, and what each shard is to load.

    ``timeline`` is the new one that begins with it.
    """

    manifest: Manifest | None
    jobs: dict[str, Job]
    plans: tuple[LoadPlan, ...]
    timeline: int

    def only(self, kept: Iterable[KeptJob]) -> Restored:
        """Return the same with these jobs only; the shards may have loaded more."""
        there = {(job.name, job.born) for job in kept}
        return replace(self, jobs={name: job for name, job in self.jobs.items() if (name, job.born) in there})


def nothing(shards: int, timeline: int) -> Restored:
    """Return what a cluster becomes that has lost everything: it is empty."""
    return Restored(None, {}, (LoadPlan("", None, "", 0, shards, ()),) * shards, timeline)


def read(
    storage: Storage, url: str, number: int, shards: int, failure: FailureSettings, now: float, timeline: int
) -> Restored:
    """Return a checkpoint for a cluster of ``shards``, on whose new timeline nobody has joined yet; blocks.

    Args:
        storage: where the coordinator reads it.
        url: where the servers read it; "": each in its own directory.
        number: of the checkpoint.
        shards: of the cluster; another number than the checkpoint's places all tensors anew.
        failure: when silence is death.
        now: the time.
        timeline: that would come next; the new one is also above the checkpoint's, which may be another
            cluster's: no incarnation of its jobs may be issued again.

    Raises:
        CheckpointUnusable: a file is missing or damaged.
    """
    manifest = checkpoint.read_manifest(storage, number)
    timeline = max(timeline, manifest.header.timeline + 1)
    state = checkpoint.read_coordinator_state(storage, number, manifest=manifest).state
    jobs = restored_jobs(state, shards, failure, now)
    updates = {job.name: job.updates for job in manifest.jobs}
    for job in jobs.values():
        job.workers.first_incarnation = first_incarnation(timeline)
        job.workers.all_out()
        if job.ledger is not None:
            job.ledger.forget_workers()
    if shards != manifest.header.shards:
        _place_anew(jobs.values(), shards)
    plans = tuple(
        LoadPlan(
            url,
            number,
            manifest.header.cluster,
            manifest.header.timeline,
            manifest.header.shards,
            tuple(_job_on(shard, job, updates.get(job.name, 0)) for job in jobs.values()),
        )
        for shard in range(shards)
    )
    return Restored(manifest, jobs, plans, timeline)


def _place_anew(jobs: Iterable[Job], shards: int) -> None:
    load = [0] * shards
    for job in jobs:
        for info in job.tensors.infos():
            blocks = place_tensor(info.spec, load)
            for shard, nbytes in load_of([replace(info, blocks=blocks)]).items():
                load[shard] += nbytes
            job.tensors.move(info.name, blocks)


def _job_on(shard: int, job: Job, updates: int) -> LoadedJob:
    tensors = [
        LoadedTensor(
            info.name, info.spec, block.start, block.stop, job.tensors.attempt(info.name), _slots(info.spec)
        )
        for info in job.tensors
        for block in info.blocks
        if block.shard == shard
    ]
    step = max(job.since, job.decisions.step, job.furthest)
    return LoadedJob(job.name, step, updates, tuple(tensors), job.born)


def _slots(spec: Spec) -> tuple[str, ...]:
    return rule_of(optimizer_from_spec(spec.optimizer)).slots
