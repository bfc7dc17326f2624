"""A shard's state as arrays and plain data, and back: for checkpoints, and for what a log says came after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from protocol.connection import Array
from protocol.documents import EPOCH
from protocol.errors import BadRequest, error_from_wire
from protocol.messages import Done, Empty, LoadedJob, LoadedTensor, Pulled, Pushed, Spec
from protocol.optimizers import optimizer_from_spec
from psserver.consistency import Clocks
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import Batch
from psserver.durability.manifest import KEYS, RECORDS, table_slot
from psserver.jobs import JobStore
from psserver.journal import Journal, Taken, plain_done
from psserver.optimizers import rule_of
from psserver.sequences import Outcome
from psserver.sequences import Sequence as Numbered
from psserver.steps import Share, Steps, follow
from psserver.store.dense import DenseBlock, spec_from_plain
from psserver.store.means import Mean, arrays_of, mean_from
from psserver.store.sparse import SparseBlock
from psserver.table_parts import saved_table

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
    for block in job.blocks.values():
        if isinstance(block, SparseBlock):
            arrays += saved_table(job.name, block.name, block.start, block.snapshot())
        else:
            arrays += [
                _saved(job, block, slot, values)
                for slot, values in zip(("", *block.rule.slots), (block.values, *block.slots), strict=True)
            ]
    return {
        "name": job.name,
        "born": job.born,
        "epoch": job.epoch,
        "clocks": job.clocks.state(),
        "updates": job.updates,
        "dropped": job.dropped,
        "longest_wait": job.longest_wait,
        "sequences": {str(worker): numbered.state() for worker, numbered in job.sequences.items()},
        "cursors": [[*key, *one] for key, of_worker in job.cursors.items() for one in of_worker.items()],
        "blocks": [_plain_block(block) for block in job.blocks.values()],
        "step": steps.clock,
        "merged": [
            [step, _plain_means(job, f"merged.{step}", means, arrays)]
            for step, means in steps.merged.items()
            if means
        ],
        "shares": [_plain_share(job, *one, arrays) for one in steps.shares()],
    }


def _saved(job: JobStore, block: DenseBlock, slot: str, values: Array) -> SavedArray:
    stop = block.start + block.values.size
    spec = block.spec
    return SavedArray(job.name, block.name, slot, values.dtype.name, spec.shape, block.start, stop, values)


def _saved_alone(job: JobStore, name: str, slot: str, values: Array) -> SavedArray:
    """Return an array that is whole by itself."""
    shape = (values.size,)
    return SavedArray(job.name, name, slot, values.dtype.name, shape, 0, values.size, values)


def _plain_block(block: DenseBlock | SparseBlock) -> dict[str, Any]:
    plain = {
        "name": block.name,
        "spec": block.plain_spec,
        "start": block.start,
        "attempt": block.attempt,
        "version": block.version,
    }
    return plain | {"stop": block.stop} if isinstance(block, SparseBlock) else plain


def _plain_means(
    job: JobStore, slot: str, means: Mapping[str, Mean], arrays: list[SavedArray]
) -> dict[str, list[float]]:
    plain = {}
    for name, mean in means.items():
        total, unit, relative = mean.freeze()
        block = job.block(name)
        for part, array in arrays_of(total).items():
            if isinstance(block, DenseBlock):
                arrays.append(_saved(job, block, slot, array))
            elif array.size:
                arrays.append(_saved_alone(job, name, f"{slot}.{part}", array))
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
    # What comes from a file is there as a whole.
    found = {(array.job, array.name, array.slot): cast(Array, array.values) for array in arrays}
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
    job.born, job.epoch = plain.get("born", 0), plain["epoch"]
    job.clocks = Clocks.restored(plain["clocks"])
    job.updates, job.dropped = plain["updates"], plain["dropped"]
    job.longest_wait = plain["longest_wait"]
    job.sequences = {int(worker): Numbered.restored(one) for worker, one in plain["sequences"].items()}
    for worker, life, *done in plain["cursors"]:
        job.note_done(worker, life, Done(*done))
    for one in plain["blocks"]:
        job.blocks[one["name"]] = _block(job.name, one, arrays)
    steps.begin_at(plain["step"])
    for step, means in plain["merged"]:
        steps.merged[step] = _means(job, f"merged.{step}", means, arrays)
    for one in plain["shares"]:
        slot = f"share.{one['step']}.{one['worker']}"
        share = Share(
            means=_means(job, slot, one["means"], arrays),
            ended=one["ended"],
            idle=one["idle"],
            included=one["included"],
            taken=[Taken(*taken) for taken in one["taken"]],
            done=_done(one["done"]),
        )
        steps.restore(one["step"], one["worker"], share)


def _block(
    job: str, plain: Mapping[str, Any], arrays: Mapping[tuple[str, str, str], Array]
) -> DenseBlock | SparseBlock:
    name, spec, start = plain["name"], spec_from_plain(plain["spec"]), plain["start"]
    block: DenseBlock | SparseBlock
    if spec.table is not None:
        block = SparseBlock(name, spec, plain["attempt"], start, plain["stop"])
        if (job, name, table_slot(KEYS, start)) in arrays:
            block.put(
                arrays[job, name, table_slot(KEYS, start)],
                _records(arrays, job, name, table_slot(RECORDS, start), block),
            )
    else:
        block = _dense(job, name, spec, plain["attempt"], start, arrays)
    block.version = plain["version"]
    return block


def _records(
    arrays: Mapping[tuple[str, str, str], Array], job: str, name: str, slot: str, block: SparseBlock
) -> Array:
    return arrays[job, name, slot].reshape(-1, block.width)


def _dense(
    job: str,
    name: str,
    spec: Spec,
    attempt: int,
    start: int,
    arrays: Mapping[tuple[str, str, str], Array],
) -> DenseBlock:
    names = rule_of(optimizer_from_spec(spec.optimizer)).slots
    slots = tuple([arrays[job, name, slot] for slot in names])
    return DenseBlock(name, spec, arrays[job, name, ""], attempt, start, slots)


def _means(
    job: JobStore,
    slot: str,
    plain: Mapping[str, Sequence[float]],
    arrays: Mapping[tuple[str, str, str], Array],
) -> dict[str, Mean]:
    means = {}
    for name, (unit, relative) in plain.items():
        keys = {"": slot, "keys": f"{slot}.keys", "values": f"{slot}.values"}
        found = {
            part: arrays[job.name, name, key] for part, key in keys.items() if (job.name, name, key) in arrays
        }
        means[name] = mean_from(job.blocks.get(name), found, unit, relative)
    return means


def _done(plain: Sequence[int] | None) -> Done | None:
    return None if plain is None else Done(*plain)


# --- from a checkpoint, on another timeline or another number of shards


def load(
    jobs: Iterable[LoadedJob],
    arrays: Mapping[tuple[str, str, str], Array],
    versions: Mapping[tuple[str, str], int],
    new_job: NewJob,
) -> None:
    """Make jobs of a load plan; nobody works on them.

    Args:
        jobs: what to make.
        arrays: by job, tensor and slot.
        versions: how many updates each tensor has seen, by job and tensor.
        new_job: makes an empty job.
    """
    for plan in jobs:
        job, steps = new_job(plan.name)
        job.born, job.updates = plan.born, plan.updates
        job.clocks.furthest = plan.step
        steps.begin_at(plan.step)
        for tensor in plan.tensors:
            block = job.blocks[tensor.name] = _loaded(plan.name, tensor, arrays)
            block.version = versions.get((plan.name, tensor.name), 0)


def _loaded(
    job: str, tensor: LoadedTensor, arrays: Mapping[tuple[str, str, str], Array]
) -> DenseBlock | SparseBlock:
    name, spec = tensor.name, tensor.spec
    if spec.table is None:
        return _dense(job, name, spec, tensor.attempt, tensor.start, arrays)
    block = SparseBlock(name, spec, tensor.attempt, tensor.start, tensor.stop)
    block.put(arrays[job, name, KEYS], _records(arrays, job, name, RECORDS, block))
    return block


# --- from a log


def replay(
    batch: Batch, jobs: MutableMapping[str, JobStore], steps: MutableMapping[str, Steps], new_job: NewJob
) -> None:
    """Do what one batch of a log says.

    Raises:
        BadRequest: it says what no shard writes.
    """
    try:
        for event in batch.events:
            _replay_event(event, batch, jobs, steps, new_job)
        batch = _without_dropped(batch)
        for (kind, job, *rest), (info, _) in batch.arrays.items():
            if kind == "block":
                _replay_block(jobs[str(job)], str(rest[0]), info, batch)
        _replay_rows(jobs, batch)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _not_whole(error) from error


def _without_dropped(batch: Batch) -> Batch:
    """Return a batch without the arrays of jobs that it says were dropped."""
    dropped = {event[1] for event in batch.events if event[0] == "drop"}
    if not dropped:
        return batch
    return replace(batch, arrays={key: one for key, one in batch.arrays.items() if key[1] not in dropped})


def _replay_block(job: JobStore, name: str, info: Sequence[Any], batch: Batch) -> None:
    plain, start, attempt, version = info
    arrays = {(job.name, name, ""): batch.arrays["block", job.name, name][1]}
    for (kind, *key), (_, values) in batch.arrays.items():
        if kind == "slot" and key[:2] == [job.name, name]:
            arrays[job.name, name, str(key[2])] = values
    block = _dense(job.name, name, spec_from_plain(plain), attempt, start, arrays)
    block.version = version
    job.blocks[name] = block


def _replay_table(job: JobStore, name: str, info: Sequence[Any]) -> None:
    plain, start, attempt, version, stop = info
    block = SparseBlock(name, spec_from_plain(plain), attempt, start, stop)
    block.version = version
    job.blocks[name] = block


def _replay_rows(jobs: Jobs, batch: Batch) -> None:
    """Put and drop the rows that a batch tells of, in the order in which they changed."""
    changes = [key for key in batch.arrays if key[0] == "gone" or (key[0] == "rows" and key[4] == "keys")]
    for key in sorted(changes, key=lambda key: int(key[3])):
        kind, job, name, number, *_ = key
        block, keys = jobs[str(job)].blocks[str(name)], batch.arrays[key][1]
        if not isinstance(block, SparseBlock):
            raise ValueError(f"{name} is no table")  # noqa: TRY004 (of a file)
        if kind == "gone":
            block.remove(keys)
        else:
            records = batch.arrays["rows", job, name, number, "records"][1]
            block.put(keys, records.reshape(-1, block.width))
            block.version += 1


def _replay_event(
    event: Sequence[Any],
    batch: Batch,
    jobs: MutableMapping[str, JobStore],
    steps: MutableMapping[str, Steps],
    new_job: NewJob,
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
            if ends and job.is_live(worker, life):
                job.clocks.ended(worker, step)
        case ["reset", name, worker, life, seq, fingerprint, updates]:
            jobs[name].updates = updates
            _complete(jobs[name], Taken(worker, life, seq, fingerprint), None, Empty())
        case ["table", name, table, info]:
            _replay_table(jobs[name], table, info)
        case ["share", name, worker, life, seq, fingerprint, step, ends, done, weight, means]:
            taken = Taken(worker, life, seq, fingerprint)
            job, kept = jobs[name], steps[name]
            _replay_share(job, kept, taken, step, batch, means, ends=ends, weight=weight, done=done)
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
                if ended and job.is_live(worker, life):
                    job.clocks.ended(worker, step)
            steps[name].replay_commit(step)
        case ["flush", name, step]:
            steps[name].replay_flush(step)
        case ["drop", name]:
            jobs.pop(name, None)  # after a restore that was not completed the log does not know it
            steps.pop(name, None)
        case _:
            pass  # the coordinator's


def _complete(job: JobStore, taken: Taken, done: Sequence[int] | None, outcome: Outcome) -> None:
    if done is not None:
        job.note_done(taken.worker, taken.incarnation, Done(*done))
    if job.is_live(taken.worker, taken.incarnation):
        job.sequences[taken.worker].completed(taken.seq, taken.fingerprint, outcome)


def _replay_share(
    job: JobStore,
    steps: Steps,
    taken: Taken,
    step: int,
    batch: Batch,
    means: Sequence[Sequence[Any]],
    *,
    ends: bool,
    weight: float,
    done: Sequence[int] | None,
) -> None:
    if step < steps.clock or not job.is_live(taken.worker, taken.incarnation):
        return
    share = steps.share(step, taken.worker)
    for name, unit, relative in means:
        keys = {part: ("share", job.name, step, taken.worker, name, part) for part in ("", "keys", "values")}
        arrays = {part: batch.arrays[key][1] for part, key in keys.items() if key in batch.arrays}
        share.means[name] = mean_from(job.blocks.get(name), arrays, unit, relative)
    share.taken.append(taken)
    share.done = _done(done) or share.done
    share.ended, share.idle = share.ended or ends, ends and weight == 0
    if not ends:  # it was acknowledged; who has ended the step still waits for its end
        _complete(job, taken, None, Pushed(job.updates))
