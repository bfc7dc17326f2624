"""A shard's state as arrays and plain data, and back: for checkpoints, and for what a log says came after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.connection import Array
from protocol.documents import EPOCH
from protocol.errors import BadRequest, error_from_wire
from protocol.messages import Done, LoadedJob, Pulled, Pushed
from psserver.consistency import Clocks
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import Batch
from psserver.jobs import JobStore
from psserver.journal import Journal, Taken, plain_done
from psserver.sequences import Outcome
from psserver.sequences import Sequence as Numbered
from psserver.steps import Share, Steps, follow
from psserver.store.dense import DenseBlock, StepMean, spec_from_plain

__all__ = ["Snapshot", "install", "load", "replay", "snapshot"]

Jobs = Mapping[str, JobStore]
NewJob = Callable[[str], tuple[JobStore, Steps]]
"""Makes an empty job."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A shard at one moment: arrays that do not change any more, and all else as plain data.

    ``segment`` is the log's segment that begins at that moment; None without a log. ``updates`` is
    ``Shard.updates``.
    """

    arrays: tuple[SavedArray, ...]
    state: dict[str, Any]
    segment: int | None
    updates: int = 0


# --- to plain data


def snapshot(jobs: Jobs, steps: Mapping[str, Steps], journal: Journal) -> Snapshot:
    """Return what the shard is now. Its arrays are kept, not copied."""
    arrays: list[SavedArray] = []
    plain = [_plain_job(job, steps[job.name], arrays) for job in jobs.values()]
    segment = None if journal.log is None else journal.log.rotate()
    return Snapshot(tuple(arrays), {"jobs": plain, "segment": segment}, segment)


def _plain_job(job: JobStore, steps: Steps, arrays: list[SavedArray]) -> dict[str, Any]:
    arrays += [_saved(job, block.name, "", block.values) for block in job.blocks.values()]
    return {
        "name": job.name,
        "epoch": job.epoch,
        "clocks": job.clocks.state(),
        "updates": job.updates,
        "dropped": job.dropped,
        "longest_wait": job.longest_wait,
        "sequences": {str(worker): numbered.state() for worker, numbered in job.sequences.items()},
        "cursors": [[*key, *_plain(done)] for key, done in job.cursors.items()],
        "blocks": [_plain_block(block) for block in job.blocks.values()],
        "step": steps.clock,
        "merged": [
            [step, _plain_means(job, f"merged.{step}", means, arrays)]
            for step, means in steps.merged.items()
            if means
        ],
        "shares": [_plain_share(job, *one, arrays) for one in steps.shares()],
    }


def _saved(job: JobStore, name: str, slot: str, values: Array) -> SavedArray:
    block = job.blocks[name]
    stop = block.start + block.values.size
    return SavedArray(job.name, name, slot, values.dtype.name, block.spec.shape, block.start, stop, values)


def _plain(done: Done) -> list[int]:
    return [done.lease, done.batches]


def _plain_block(block: DenseBlock) -> dict[str, Any]:
    return {
        "name": block.name,
        "spec": block.plain_spec,
        "start": block.start,
        "attempt": block.attempt,
        "version": block.version,
    }


def _plain_means(
    job: JobStore, slot: str, means: Mapping[str, StepMean], arrays: list[SavedArray]
) -> dict[str, list[float]]:
    plain = {}
    for name, mean in means.items():
        total, unit, relative = mean.freeze()
        arrays.append(_saved(job, name, slot, total))
        plain[name] = [unit, relative]
    return plain


def _plain_share(
    job: JobStore, step: int, worker: int, share: Share, arrays: list[SavedArray]
) -> dict[str, Any]:
    return {
        "step": step,
        "worker": worker,
        "ended": share.ended,
        "idle": share.idle,
        "included": share.included,
        "taken": [list(taken) for taken in share.taken],
        "done": plain_done(share.done),
        "means": _plain_means(job, f"share.{step}.{worker}", share.means, arrays),
    }


# --- from a checkpoint, nothing lost


def install(state: Mapping[str, Any], arrays: Iterable[SavedArray], new_job: NewJob) -> None:
    """Make the jobs that ``snapshot`` saw.

    Raises:
        BadRequest: the state is not whole.
    """
    found = {(array.job, array.name, array.slot): array.values for array in arrays}
    try:
        for plain in state["jobs"]:
            _install_job(plain, found, *new_job(plain["name"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _not_whole(error) from error


def _not_whole(error: Exception) -> BadRequest:
    return BadRequest("the saved state is not whole", field="state", value=repr(error))


def _install_job(
    plain: Mapping[str, Any], arrays: Mapping[tuple[str, str, str], Array], job: JobStore, steps: Steps
) -> None:
    job.epoch = plain["epoch"]
    job.clocks = Clocks.restored(plain["clocks"])
    job.updates, job.dropped = plain["updates"], plain["dropped"]
    job.longest_wait = plain["longest_wait"]
    job.sequences = {int(worker): Numbered.restored(one) for worker, one in plain["sequences"].items()}
    job.cursors = {(worker, life): Done(*done) for worker, life, *done in plain["cursors"]}
    for one in plain["blocks"]:
        values = arrays[job.name, one["name"], ""]
        job.blocks[one["name"]] = _block(one["name"], one, values)
    steps.begin_at(plain["step"])
    for step, means in plain["merged"]:
        steps.merged[step] = _means(job.name, f"merged.{step}", means, arrays)
    for one in plain["shares"]:
        slot = f"share.{one['step']}.{one['worker']}"
        share = Share(
            means=_means(job.name, slot, one["means"], arrays),
            ended=one["ended"],
            idle=one["idle"],
            included=one["included"],
            taken=[Taken(*taken) for taken in one["taken"]],
            done=_done(one["done"]),
        )
        steps.restore(one["step"], one["worker"], share)


def _block(name: str, plain: Mapping[str, Any], values: Array) -> DenseBlock:
    block = DenseBlock(name, spec_from_plain(plain["spec"]), values, plain["attempt"], plain["start"])
    block.version = plain["version"]
    return block


def _means(
    job: str,
    slot: str,
    plain: Mapping[str, Sequence[float]],
    arrays: Mapping[tuple[str, str, str], Array],
) -> dict[str, StepMean]:
    means = {name: StepMean(arrays[job, name, slot], *weights) for name, weights in plain.items()}
    for mean in means.values():
        mean.freeze()  # its memory may not be writeable
    return means


def _done(plain: Sequence[int] | None) -> Done | None:
    return None if plain is None else Done(*plain)


# --- from a checkpoint, on another timeline or another number of shards


def load(jobs: Iterable[LoadedJob], arrays: Mapping[tuple[str, str, str], Array], new_job: NewJob) -> None:
    """Make jobs of a load plan and its arrays, by job, tensor and slot; nobody works on them."""
    for plan in jobs:
        job, steps = new_job(plan.name)
        job.updates = plan.updates
        job.clocks.furthest = plan.step
        steps.begin_at(plan.step)
        for tensor in plan.tensors:
            values = arrays[plan.name, tensor.name, ""]
            block = DenseBlock(tensor.name, tensor.spec, values, tensor.attempt, tensor.start)
            block.version = plan.updates
            job.blocks[tensor.name] = block


# --- from a log


def replay(batch: Batch, jobs: Jobs, steps: Mapping[str, Steps], new_job: NewJob) -> None:
    """Do what one batch of a log says.

    Raises:
        BadRequest: it says what no shard writes.
    """
    try:
        for event in batch.events:
            _replay_event(event, batch, jobs, steps, new_job)
        for (kind, job, *rest), (info, values) in batch.arrays.items():
            if kind == "block":
                _replay_block(jobs[str(job)], str(rest[0]), info, values)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _not_whole(error) from error


def _replay_block(job: JobStore, name: str, info: Sequence[Any], values: Array) -> None:
    spec, start, attempt, version = info
    block = DenseBlock(name, spec_from_plain(spec), values, attempt, start)
    block.version = version
    job.blocks[name] = block


def _replay_event(
    event: Sequence[Any], batch: Batch, jobs: Jobs, steps: Mapping[str, Steps], new_job: NewJob
) -> None:
    match event:
        case ["epoch", plain]:
            epoch = EPOCH.from_plain(plain)
            job, kept = (jobs[epoch.job], steps[epoch.job]) if epoch.job in jobs else new_job(epoch.job)
            follow(job, kept, epoch)
        case ["push", name, worker, life, seq, fingerprint, step, ends, done, updates]:
            job = jobs[name]
            job.updates = updates
            steps[name].forget(step, worker, seq)
            _complete(job, Taken(worker, life, seq, fingerprint), done, None if ends else Pushed(updates))
            if ends and _is_live(job, worker, life):
                job.clocks.ended(worker, step)
        case ["share", name, worker, life, seq, fingerprint, step, ends, done, weight]:
            taken = Taken(worker, life, seq, fingerprint)
            _replay_share(jobs[name], steps[name], taken, step, batch, ends=ends, weight=weight, done=done)
        case ["include", name, step, workers]:
            for worker in workers:
                steps[name].include(step, worker)
        case ["commit", name, step, applied, updates, closed]:
            job = jobs[name]
            job.updates = updates
            for worker, life, seq, fingerprint, ended, included, done, error in closed:
                outcome: Outcome = None if included else Pulled(updates, (), step + 1)
                if error is not None:
                    outcome = error_from_wire(*error)
                taken = Taken(worker, life, seq, fingerprint)
                _complete(job, taken, done if applied and included else None, outcome)
                if ended and _is_live(job, worker, life):
                    job.clocks.ended(worker, step)
            steps[name].replay_commit(step)
        case ["flush", name, step]:
            steps[name].replay_flush(step)
        case _:
            pass  # the coordinator's


def _is_live(job: JobStore, worker: int, incarnation: int) -> bool:
    member = job.clocks.members.get(worker)
    return member is not None and member.incarnation == incarnation


def _complete(job: JobStore, taken: Taken, done: Sequence[int] | None, outcome: Outcome) -> None:
    if done is not None:
        job.cursors[taken.worker, taken.incarnation] = Done(*done)
    if _is_live(job, taken.worker, taken.incarnation):
        job.sequences[taken.worker].completed(taken.seq, taken.fingerprint, outcome)


def _replay_share(
    job: JobStore,
    steps: Steps,
    taken: Taken,
    step: int,
    batch: Batch,
    *,
    ends: bool,
    weight: float,
    done: Sequence[int] | None,
) -> None:
    if step < steps.clock or not _is_live(job, taken.worker, taken.incarnation):
        return
    share = steps.share(step, taken.worker)
    for (kind, name, *rest), (info, values) in batch.arrays.items():
        if (kind, name, *rest[:2]) == ("share", job.name, step, taken.worker):
            _, unit, relative = info
            mean = share.means[str(rest[2])] = StepMean(values, unit, relative)
            mean.freeze()
    share.taken.append(taken)
    share.done = _done(done) or share.done
    share.ended, share.idle = share.ended or ends, ends and weight == 0
    if not ends:  # it was acknowledged; who has ended the step still waits for its end
        _complete(job, taken, None, Pushed(job.updates))
