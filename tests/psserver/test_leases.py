import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.messages import MAX_REASONS, Finish, Leased, Measure, Plan, Skipped
from psserver.leases import Ledger
from tests.psserver.saved_states import assert_damage_is_refused, through_json

CUT = ("contiguous", "round-robin", "hash:user")


def plan(
    chunks: int = 4,
    epochs: int = 2,
    every: int = 0,
    seed: int = 0,
    partition: str = "leases",
    parts: int = 1,
    **more: Any,
) -> Plan:
    return Plan("text", chunks, epochs, every, seed, partition, parts, **more)


def done(leased: Leased, examples: int = 1, **measures: float) -> Finish:
    means = tuple(Measure(name, value) for name, value in measures.items())
    return Finish(1, leased.kind, leased.epoch, leased.chunk, examples, means, leased.part)


def work_alone(ledger: Ledger) -> list[Leased]:
    """One worker does it all."""
    order = []
    while (leased := ledger.lease(0)).kind != "finished":
        assert leased.kind != "wait"
        order.append(leased)
        ledger.finish(0, done(leased), now=1.0)
    return order


def chunks_of(order: list[Leased], epoch: int) -> list[int]:
    return [leased.chunk for leased in order if leased.epoch == epoch and leased.kind == "train"]


def test_each_chunk_of_each_epoch_once() -> None:
    order = work_alone(Ledger(plan(chunks=5, epochs=3), 0.0))
    assert [leased.epoch for leased in order] == [1] * 5 + [2] * 5 + [3] * 5
    for epoch in (1, 2, 3):
        assert sorted(chunks_of(order, epoch)) == [0, 1, 2, 3, 4]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = work_alone(Ledger(plan(chunks=50, epochs=2, seed=3), 0.0))
    again = work_alone(Ledger(plan(chunks=50, epochs=9, seed=3), 99.0))
    other = work_alone(Ledger(plan(chunks=50, epochs=2, seed=4), 0.0))
    assert chunks_of(order, 1) == chunks_of(again, 1)
    assert chunks_of(order, 2) == chunks_of(again, 2)
    assert chunks_of(order, 1) != chunks_of(order, 2)
    assert chunks_of(order, 1) != chunks_of(other, 1)


def test_the_next_epoch_begins_while_chunks_are_still_out() -> None:
    ledger = Ledger(plan(chunks=1, epochs=2), 0.0)
    assert [ledger.lease(worker).epoch for worker in (0, 1)] == [1, 2]
    assert ledger.lease(2).kind == "wait"


def test_an_evaluation_waits_for_all_training_and_the_training_for_it() -> None:
    ledger = Ledger(plan(chunks=2, epochs=2, every=1), 0.0)
    first, second = ledger.lease(0), ledger.lease(1)
    ledger.finish(0, done(first), 0.0)
    assert ledger.lease(0).kind == "wait"
    ledger.finish(1, done(second), 0.0)
    evaluations = [ledger.lease(0), ledger.lease(1)]
    assert [leased.kind for leased in evaluations] == ["evaluate", "evaluate"]
    assert ledger.lease(2).kind == "wait"
    ledger.finish(0, done(evaluations[0]), 0.0)
    assert ledger.lease(0).kind == "wait"
    ledger.finish(1, done(evaluations[1]), 0.0)
    assert (ledger.lease(0).kind, ledger.lease(1).epoch) == ("train", 2)


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_evaluations_come_after_each_so_many_epochs_and_after_the_last(
    every: int, expected: list[int]
) -> None:
    ledger = Ledger(plan(chunks=2, epochs=5, every=every), 0.0)
    order = work_alone(ledger)
    assert [leased.epoch for leased in order if leased.kind == "evaluate"][::2] == expected
    assert [evaluation.epoch for evaluation in ledger.progress(0.0).evaluations] == expected


def test_evaluations_are_weighted_means_of_the_chunks() -> None:
    ledger = Ledger(plan(chunks=2, epochs=1, every=1), 0.0)
    for _ in range(2):
        ledger.finish(0, done(ledger.lease(0)), 0.0)
    ledger.finish(0, done(ledger.lease(0), 3, loss=1.0, accuracy=0.5), 0.0)
    ledger.finish(0, done(ledger.lease(0), 1, loss=5.0, accuracy=0.9), 0.0)
    (evaluation,) = ledger.progress(0.0).evaluations
    assert evaluation.examples == 4
    means = {mean.name: mean.value for mean in evaluation.means}
    assert means == {"loss": pytest.approx(2.0), "accuracy": pytest.approx(0.6)}


def test_an_evaluation_without_examples_has_no_means() -> None:
    ledger = Ledger(plan(chunks=1, epochs=1, every=1), 0.0)
    ledger.finish(0, done(ledger.lease(0)), 0.0)
    ledger.finish(0, done(ledger.lease(0), 0), 0.0)
    assert ledger.finished
    (evaluation,) = ledger.progress(0.0).evaluations
    assert (evaluation.examples, evaluation.means) == (0, ())


def test_what_is_given_back_is_done_first_by_another() -> None:
    ledger = Ledger(plan(chunks=4, epochs=1), 0.0)
    lost = ledger.lease(0)
    ledger.lease(1)
    ledger.give_back(0)
    assert ledger.lease(2) == lost
    ledger.finish(2, done(lost), 0.0)
    with pytest.raises(BadRequest):
        ledger.finish(0, done(lost), 0.0)
    assert ledger.progress(0.0).chunks_done == 1


def test_what_is_given_back_keeps_its_order() -> None:
    ledger = Ledger(plan(chunks=5, epochs=2), 0.0)
    order = [ledger.lease(worker) for worker in (0, 1, 0, 1, 0, 1, 0)]  # two are of the next epoch
    ledger.give_back(0)
    ledger.give_back(1)
    assert [ledger.lease(2) for _ in order] == [order[place] for place in (1, 3, 0, 2, 4, 5, 6)]


def test_a_chunk_that_comes_back_after_the_queue_was_empty_keeps_the_evaluation_waiting() -> None:
    ledger = Ledger(plan(chunks=2, epochs=1, every=1), 0.0)
    lost, other = ledger.lease(0), ledger.lease(1)
    ledger.finish(1, done(other), 0.0)
    assert ledger.lease(1).kind == "wait"
    ledger.give_back(0)
    assert ledger.lease(1) == lost


@pytest.mark.parametrize("wrong", ["kind", "epoch", "chunk", "worker", "twice", "examples"])
def test_only_a_lease_held_is_finished_and_once(wrong: str) -> None:
    ledger = Ledger(plan(), 0.0)
    leased = ledger.lease(0)
    finish = done(leased)
    worker = 0
    match wrong:
        case "kind":
            finish = Finish(1, "evaluate", leased.epoch, leased.chunk, 1, ())
        case "epoch":
            finish = Finish(1, "train", leased.epoch + 1, leased.chunk, 1, ())
        case "chunk":
            finish = Finish(1, "train", leased.epoch, 99, 1, ())
        case "worker":
            worker = 1
        case "examples":
            finish = done(leased, 2**63 - 1)
        case "twice":
            ledger.finish(0, finish, 0.0)
    before = ledger.progress(0.0)
    with pytest.raises(BadRequest) as caught:
        ledger.finish(worker, finish, 0.0)
    assert caught.value.field in ("chunk", "examples")
    assert ledger.progress(0.0) == before


@pytest.mark.parametrize("field", ["chunks", "epochs"])
def test_absurdly_much_work_is_refused(field: str) -> None:
    settings: dict[str, Any] = {field: 2**62}
    with pytest.raises(BadRequest, match="at most") as caught:
        Ledger(plan(**settings), 0.0)
    assert caught.value.field == field


def test_progress_counts() -> None:
    ledger = Ledger(plan(chunks=2, epochs=2), now=10.0)
    first = ledger.lease(0)
    ledger.lease(1)
    ledger.finish(0, done(first, 5, loss=2.0), now=11.0)
    progress = ledger.progress(now=14.0)
    assert (progress.phase, progress.epoch, progress.epochs) == ("train", 1, 2)
    assert (progress.chunks, progress.chunks_done, progress.chunks_leased) == (4, 1, 1)
    assert (progress.train_examples, progress.train_loss, progress.seconds) == (5, 2.0, 4.0)


def test_the_training_loss_is_that_of_the_present_epoch() -> None:
    ledger = Ledger(plan(chunks=2, epochs=2), 0.0)
    for loss, expected in ((4.0, 4.0), (2.0, 3.0), (1.0, 1.0), (0.0, 0.5)):
        ledger.finish(0, done(ledger.lease(0), 1, loss=loss), 0.0)
        assert ledger.progress(0.0).train_loss == pytest.approx(expected)


def test_time_stops_when_the_work_is_done() -> None:
    ledger = Ledger(plan(chunks=1, epochs=1), now=1.0)
    ledger.finish(0, done(ledger.lease(0)), now=3.0)
    assert ledger.finished
    assert ledger.lease(0).kind == "finished"
    progress = ledger.progress(now=100.0)
    assert (progress.phase, progress.seconds) == ("finished", 2.0)


# --- the survey


@pytest.mark.parametrize("partition", ["leases", *CUT])
def test_a_survey_leases_each_chunk_once_and_whole_before_anything_is_trained(partition: str) -> None:
    surveyed = plan(chunks=5, epochs=2, every=1, partition=partition, parts=2, survey=True)
    order = work_alone(Ledger(surveyed, 0.0))
    plain = work_alone(Ledger(replace(surveyed, survey=False), 0.0))
    survey, rest = order[:5], order[5:]
    assert {(one.kind, one.epoch, one.part, one.skip) for one in survey} == {("survey", 0, None, 0)}
    assert sorted(one.chunk for one in survey) == [0, 1, 2, 3, 4]
    assert rest == plain


def test_training_waits_for_the_survey() -> None:
    ledger = joined(plan(chunks=2, epochs=1, partition="round-robin", parts=2, survey=True), 2)
    first, second = ledger.lease(0), ledger.lease(1)
    assert ledger.lease(0).kind == "wait"
    ledger.finish(0, done(first, 7, loss=9.0), 0.0)
    assert ledger.lease(0).kind == "wait"
    progress = ledger.progress(0.0)
    assert (progress.phase, progress.epoch, progress.chunks, progress.chunks_done) == ("survey", 0, 2, 0)
    ledger.finish(1, done(second, 7), 0.0)
    assert ledger.lease(0).kind == "train"
    progress = ledger.progress(0.0)
    assert (progress.phase, progress.epoch, progress.train_examples) == ("train", 1, 0)


def test_a_chunk_whose_statistics_are_pushed_is_only_to_be_finished() -> None:
    ledger = Ledger(plan(chunks=2, epochs=1, survey=True), 0.0)
    pushed, lost = ledger.lease(0, 3), ledger.lease(0, 4)
    ledger.reached(0, 3, 1)
    ledger.give_back(0)
    ledger = restarted(ledger)
    again = {leased.chunk: leased.skip for leased in (ledger.lease(1, 1), ledger.lease(1, 2))}
    assert again == {pushed.chunk: 1, lost.chunk: 0}
    for chunk in again:
        ledger.finish(1, done(Leased("survey", 0, chunk)), 0.0)
    assert [ledger.lease(1).skip for _ in range(2)] == [0, 0]  # of the training


# --- early stopping


def evaluated(ledger: Ledger, *values: float, name: str = "loss") -> None:
    """Train and evaluate once for each value, as long as there is work."""
    for value in values:
        while (leased := ledger.lease(0)).kind == "train":
            ledger.finish(0, done(leased), 0.0)
        while leased.kind == "evaluate":
            ledger.finish(0, done(leased, 1, **{name: value}), 5.0)
            leased = ledger.lease(0)
            if leased.kind == "train":
                ledger.give_back(0)


def test_a_job_ends_when_evaluations_have_stopped_getting_better() -> None:
    ledger = Ledger(plan(chunks=2, epochs=9, every=1, patience=2), 0.0)
    evaluated(ledger, 3.0, 2.0, 2.5)
    assert not ledger.finished
    ledger = restarted(ledger, now=0.0, later=0.0)
    evaluated(ledger, 1.0, 1.0)  # no more than as good
    assert (ledger.finished, ledger.progress(0.0).stopped) == (False, "")
    evaluated(ledger, 1.5)
    ledger = restarted(ledger, now=5.0, later=5.0)
    progress = ledger.progress(9.0)
    assert (progress.phase, progress.epoch, progress.chunks_done, progress.seconds) == (
        "finished",
        6,
        12,
        5.0,
    )
    assert progress.stopped == "loss has not improved in 2 evaluations (the best was 1)"
    assert ledger.lease(0).kind == "finished"


@pytest.mark.parametrize(
    ("monitor", "min_delta", "values", "epochs"),
    [
        ("loss", 0.0, [3.0, 2.0, 1.0, 0.5], 4),
        ("loss", 0.5, [3.0, 2.75, 2.5, 2.0], 3),
        ("loss", 0.5, [3.0, 2.75, 2.25, 2.0], 4),  # what counts is the best, not the one before
        ("accuracy", 0.0, [0.1, 0.2, 0.3, 0.4], 4),
        ("accuracy", 0.0, [0.4, 0.3, 0.2, 0.1], 3),
        ("loss", 0.0, [math.nan, math.nan, 1.0, 1.0], 2),
        ("loss", 0.0, [1.0, math.nan, math.inf, 0.0], 3),
        ("auc", 0.0, [1.0, 1.0, 1.0, 1.0], 4),  # nobody measures it
    ],
)
def test_what_is_better(monitor: str, min_delta: float, values: list[float], epochs: int) -> None:
    ledger = Ledger(plan(1, 4, 1, patience=2, min_delta=min_delta, monitor=monitor), 0.0)
    evaluated(ledger, *values, name="loss" if monitor == "auc" else monitor)
    progress = ledger.progress(0.0)
    assert (progress.phase, progress.epoch) == ("finished", epochs)
    assert bool(progress.stopped) == (epochs < 4)


def test_a_job_that_ends_anyhow_is_not_stopped_early() -> None:
    ledger = Ledger(plan(1, 3, 1, patience=2), 0.0)
    evaluated(ledger, 1.0, 2.0, 3.0)
    assert (ledger.finished, ledger.progress(0.0).stopped) == (True, "")


def test_what_follows_from_means_is_monitored_and_shown_and_ingredients_are_not() -> None:
    ledger = Ledger(plan(1, 3, 1, patience=1, monitor="rmse"), 0.0)
    for mse in (4.0, 9.0):
        ledger.finish(0, done(ledger.lease(0)), 0.0)
        leased = ledger.lease(0)
        means = (Measure("mse", mse), Measure("~y", 1.0))
        ledger.finish(0, Finish(1, "evaluate", leased.epoch, leased.chunk, 2, means), 0.0)
    progress = ledger.progress(0.0)
    assert progress.stopped == "rmse has not improved in 1 evaluations (the best was 2)"
    assert {mean.name: mean.value for mean in progress.evaluations[-1].means} == {"mse": 9.0, "rmse": 3.0}


# --- streams


def test_a_stream_goes_on_from_its_offsets_until_its_sources_end() -> None:
    ledger = Ledger(plan(chunks=2, epochs=1, stream=True), 0.0)
    far = (1 << 63) - 1
    one, other = ledger.lease(0, 1), ledger.lease(0, 2)  # one worker may have several
    assert (one.kind, one.epoch, one.skip) == ("train", 1, 0)
    ledger.reached(0, 1, 5000)
    ledger.reached(0, 2, far)
    ledger = restarted(ledger)
    ledger.forget_workers()
    again = [ledger.lease(1, 1), ledger.lease(2, 1)]
    assert {leased.chunk: leased.skip for leased in again} == {one.chunk: 5000, other.chunk: far}
    ledger.finish(1, done(again[0]), 0.0)
    assert ledger.lease(1).kind == "wait"
    ledger.finish(2, done(again[1]), 0.0)
    assert ledger.lease(1).kind == "finished"


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"epochs": 2}, "epochs"), ({"every": 1}, "evaluate_every"), ({"survey": True}, "survey")],
)
def test_a_stream_has_no_end_after_which_anything_comes(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Ledger(plan(**({"epochs": 1, "stream": True} | settings)), 0.0)
    assert caught.value.field == field


# --- parts


def part_of(plan: Plan, leased: Leased) -> int:
    """The part that a training lease is of, from what the partitions are said to be."""
    match plan.partition:
        case "contiguous":
            bounds = [part * plan.chunks // plan.parts for part in range(plan.parts + 1)]
            (part,) = (p for p in range(plan.parts) if bounds[p] <= leased.chunk < bounds[p + 1])
            return part
        case "round-robin":
            return leased.chunk % plan.parts
        case "leases":
            return 0
        case _:
            assert leased.part is not None
            return leased.part


def joined(plan: Plan, workers: int) -> Ledger:
    ledger = Ledger(plan, 0.0)
    for worker in range(workers):
        ledger.join(worker)
    return ledger


def taken(ledger: Ledger, worker: int) -> list[Leased]:
    """All that a worker is given until it has to wait; nothing of it is done."""
    found = []
    while (leased := ledger.lease(worker)).kind not in ("wait", "finished"):
        found.append(leased)
    return found


def work_of(ledger: Ledger, worker: int) -> list[tuple[int, int | None]]:
    return sorted((leased.chunk, leased.part) for leased in taken(ledger, worker))


@pytest.mark.parametrize(
    ("partition", "parts"),
    [
        ("contiguous", [[0, 1], [2, 3], [4, 5, 6]]),
        ("round-robin", [[0, 3, 6], [1, 4], [2, 5]]),
        ("hash:user", [list(range(7))] * 3),
    ],
)
def test_each_worker_is_given_its_part(partition: str, parts: list[list[int]]) -> None:
    ledger = joined(plan(chunks=7, epochs=1, partition=partition, parts=3), 3)
    for worker in (2, 0, 1):
        part = worker if partition.startswith("hash") else None
        assert work_of(ledger, worker) == [(chunk, part) for chunk in parts[worker]]


@pytest.mark.parametrize("partition", CUT)
def test_a_worker_too_many_waits(partition: str) -> None:
    ledger = joined(plan(partition=partition, parts=2), 3)
    assert ledger.lease(2).kind == "wait"
    assert ledger.lease(0).kind == "train"


@pytest.mark.parametrize("partition", ["contiguous", "round-robin"])
def test_there_may_be_more_parts_than_chunks(partition: str) -> None:
    ledger = joined(plan(chunks=2, epochs=2**32, partition=partition, parts=5), 5)
    kinds = [ledger.lease(worker).kind for worker in range(5)]
    assert sorted(kinds) == ["train", "train", "wait", "wait", "wait"]


def test_who_comes_back_gets_its_part_back_if_it_is_free() -> None:
    ledger = joined(plan(chunks=3, epochs=1, partition="contiguous", parts=3), 3)
    for worker in (0, 1, 2):
        ledger.give_back(worker)
    ledger.join(1)  # its own, though part 0 is free too
    ledger.join(7)  # the first
    ledger.join(0)  # that was taken meanwhile: the first that is free
    ledger.join(2)  # none is left
    assert ledger.lease(2).kind == "wait"
    assert [work_of(ledger, worker) for worker in (1, 7, 0)] == [[(1, None)], [(0, None)], [(2, None)]]


def test_those_who_have_gone_are_not_remembered_for_ever() -> None:
    def part_on_return(comers: int) -> int:
        ledger = joined(plan(chunks=2, epochs=1, partition="contiguous", parts=2), 2)
        for worker in (1, 0, *range(2, 2 + comers)):
            ledger.join(worker)
            ledger.give_back(worker)
        ledger.join(1)
        return ledger.lease(1).chunk

    assert part_on_return(10) == 1
    assert part_on_return(20_000) == 0


def test_joining_twice_is_joining_once() -> None:
    ledger = joined(plan(chunks=2, epochs=1, partition="contiguous", parts=2), 1)
    ledger.join(0)
    ledger.join(1)
    assert work_of(ledger, 1) == [(1, None)]


@pytest.mark.parametrize("partition", CUT)
def test_what_a_dead_worker_leaves_is_done_by_those_who_have_done_their_own(partition: str) -> None:
    ledger = joined(plan(chunks=4, epochs=2, partition=partition, parts=2), 2)
    ledger.lease(0)
    ledger.give_back(0)
    order = [(leased.epoch, part_of(ledger.plan, leased)) for leased in taken(ledger, 1)]
    assert order == sorted(order, key=lambda one: (one[0], one[1] != 1))  # each epoch: first its own
    assert {part for _, part in order} == {0, 1}


def test_who_takes_a_part_over_is_given_what_is_left_of_it() -> None:
    ledger = joined(plan(chunks=4, epochs=1, partition="contiguous", parts=2), 2)
    ledger.give_back(0)
    helped = taken(ledger, 1)[:3]  # its own two, and one of the orphan
    ledger = joined(plan(chunks=4, epochs=1, partition="contiguous", parts=2), 2)
    ledger.give_back(0)
    assert [ledger.lease(1) for _ in range(3)] == helped
    ledger.join(2)
    assert ledger.lease(1).kind == "wait"
    (rest,) = taken(ledger, 2)
    assert {helped[2].chunk, rest.chunk} == {0, 1}
    ledger.finish(1, done(helped[2]), 0.0)  # what was out stays with whom it was leased to
    ledger.give_back(1)
    assert {leased.chunk for leased in taken(ledger, 3)} == {2, 3}


@pytest.mark.parametrize("partition", CUT)
def test_evaluation_knows_no_parts(partition: str) -> None:
    ledger = joined(plan(chunks=4, epochs=1, every=1, partition=partition, parts=2), 2)
    for worker in (0, 1):
        for leased in taken(ledger, worker):
            ledger.finish(worker, done(leased), 0.0)
    found = taken(ledger, 9)  # that has no part
    assert {(leased.kind, leased.part) for leased in found} == {("evaluate", None)}
    assert sorted(leased.chunk for leased in found) == [0, 1, 2, 3]


@pytest.mark.parametrize("partition", CUT)
def test_between_epochs_without_an_evaluation_no_owner_waits_for_another(partition: str) -> None:
    ledger = joined(plan(chunks=4, epochs=6, every=3, partition=partition, parts=2), 2)
    assert {leased.epoch for leased in taken(ledger, 0)} == {1, 2, 3}


@pytest.mark.parametrize("partition", CUT)
def test_the_order_in_a_part_is_the_same_whatever_the_others_do(partition: str) -> None:
    cut = plan(chunks=40, epochs=2, seed=3, partition=partition, parts=2)
    alone, crowded = joined(cut, 2), joined(cut, 2)
    order = [leased.chunk for leased in taken(alone, 0)]
    again = []
    while (leased := crowded.lease(0)).kind == "train":
        again.append(leased.chunk)
        if (other := crowded.lease(1)).kind == "train":
            crowded.finish(1, done(other), 0.0)
    assert again == order
    half = len(order) // 2
    assert sorted(order[:half]) == sorted(order[half:])
    assert order[:half] != order[half:]


@pytest.mark.parametrize(("partition", "pieces"), [("contiguous", 4), ("round-robin", 4), ("hash:user", 12)])
def test_progress_counts_what_is_leased(partition: str, pieces: int) -> None:
    ledger = joined(plan(chunks=4, epochs=2, partition=partition, parts=3), 0)
    for number in range(pieces):
        progress = ledger.progress(0.0)
        assert (progress.epoch, progress.chunks, progress.chunks_done) == (1, 2 * pieces, number)
        ledger.finish(0, done(ledger.lease(0)), 0.0)
    assert ledger.progress(0.0).epoch == 2


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"partition": "hash"}, "partition"),
        ({"partition": "random"}, "partition"),
        ({"partition": "contiguous", "parts": 2**62}, "parts"),
        ({"partition": "hash:user", "parts": 1000, "chunks": 1001}, "chunks"),
    ],
)
def test_a_partition_that_cannot_be_kept_account_of(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Ledger(plan(**settings), 0.0)
    assert caught.value.field == field


# --- mini-batches that are done already


def test_whoever_goes_on_with_a_chunk_leaves_out_what_is_done() -> None:
    ledger = Ledger(plan(chunks=1, epochs=1), 0.0)
    leased = ledger.lease(0, 7)
    assert leased.skip == 0
    ledger.reached(0, 7, 3)
    ledger.reached(0, 7, 5)
    ledger.reached(0, 7, 4)  # told late
    ledger.give_back(0)
    assert ledger.lease(1, 1) == replace(leased, skip=5)
    ledger.reached(1, 1, 8)  # counted from the beginning of the chunk
    ledger.give_back(1)
    assert ledger.lease(0, 8) == replace(leased, skip=8)
    ledger.give_back(0)  # without having done anything
    again = ledger.lease(2, 1)
    assert again == replace(leased, skip=8)
    ledger.finish(2, done(again), 0.0)
    assert ledger.finished


@pytest.mark.parametrize("whose", ["another's", "of another request", "given back", "finished"])
def test_what_is_said_of_no_lease_is_not_noted(whose: str) -> None:
    ledger = Ledger(plan(chunks=2, epochs=1), 0.0)
    leased = ledger.lease(0, 7)
    match whose:
        case "another's":
            ledger.reached(1, 7, 3)
        case "of another request":
            ledger.reached(0, 6, 3)
        case "given back":
            ledger.give_back(0)
            ledger.reached(0, 7, 3)
        case "finished":
            ledger.finish(0, done(leased), 0.0)
            ledger.reached(0, 7, 3)
    ledger.give_back(0)
    assert {ledger.lease(2).skip for _ in range(3)} == {0}


def test_of_several_leases_the_one_that_is_meant_gets_on() -> None:
    ledger = Ledger(plan(chunks=3, epochs=1), 0.0)
    leases = [ledger.lease(0, number) for number in (1, 2, 3)]
    ledger.reached(0, 2, 4)
    ledger.give_back(0)
    assert [ledger.lease(1) for _ in leases] == [leases[0], replace(leases[1], skip=4), leases[2]]


def test_an_evaluation_has_no_mini_batches() -> None:
    ledger = Ledger(plan(chunks=1, epochs=1, every=1), 0.0)
    ledger.finish(0, done(ledger.lease(0)), 0.0)
    leased = ledger.lease(0, 5)
    ledger.reached(0, 5, 3)
    ledger.give_back(0)
    assert (leased.kind, ledger.lease(1)) == ("evaluate", leased)


def test_each_chunk_of_each_epoch_begins_at_its_beginning() -> None:
    ledger = Ledger(plan(chunks=1, epochs=2), 0.0)
    ledger.lease(0, 1)
    ledger.reached(0, 1, 5)
    ledger.give_back(0)
    first = ledger.lease(0, 2)
    ledger.finish(0, done(first), 0.0)
    assert (first.skip, ledger.lease(0, 3).skip) == (5, 0)


@pytest.mark.parametrize("measured", [[True, False, True], [False, True, True], [True, True, False]])
def test_a_chunk_of_which_nothing_was_left_to_measure_does_not_count_in_the_loss(
    measured: list[bool],
) -> None:
    """Whoever did its mini-batches has gone without a report; who finished it has trained on nothing."""
    ledger = Ledger(plan(chunks=3, epochs=1), 0.0)
    for loss in measured:
        ledger.finish(0, done(ledger.lease(0), 10, **({"loss": 4.0} if loss else {})), 0.0)
    progress = ledger.progress(0.0)
    assert (progress.train_examples, progress.train_loss) == (30, 4.0)


# --- when all workers are gone at once


def test_who_has_something_that_others_could_have_is_known() -> None:
    ledger = joined(plan(chunks=4, epochs=1, partition="contiguous", parts=2), 3)
    assert ledger.holders() == {0, 1}
    ledger.give_back(0)
    leased = ledger.lease(2)  # of the part without an owner
    assert ledger.holders() == {1, 2}
    ledger.finish(2, done(leased), 0.0)
    assert ledger.holders() == {1}
    ledger.forget_workers()
    assert ledger.holders() == set()


@pytest.mark.parametrize("partition", ["leases", *CUT])
def test_without_its_workers_a_ledger_has_all_that_is_undone_and_no_owners(partition: str) -> None:
    cut = plan(chunks=6, epochs=1, partition=partition, parts=2)
    ledger = joined(cut, 3)
    undone = Counter((leased.chunk, leased.part) for worker in range(3) for leased in taken(ledger, worker))
    finished = ledger.lease(0)
    assert finished.kind == "wait"
    ledger.forget_workers()
    assert ledger.leases() == Counter()
    assert Counter((leased.chunk, leased.part) for leased in taken(ledger, 9)) == undone


def test_who_comes_back_after_all_were_gone_gets_its_part_back() -> None:
    ledger = joined(plan(chunks=3, epochs=1, partition="contiguous", parts=3), 3)
    ledger.forget_workers()
    ledger.join(1)
    assert ledger.lease(1).chunk == 1


# --- after a restart


def restarted(ledger: Ledger, now: float = 100.0, later: float = 7.0) -> Ledger:
    again = Ledger.restored(ledger.plan, through_json(ledger.state(now)), later)
    assert again.state(later) == ledger.state(now)
    return again


def test_time_in_which_nothing_ran_is_not_counted() -> None:
    ledger = Ledger(plan(chunks=1, epochs=1), now=1000.0)
    ledger = restarted(ledger, now=1005.0, later=3.0)
    assert ledger.progress(4.0).seconds == 6.0
    ledger.finish(0, done(ledger.lease(0)), 5.0)
    ledger = restarted(ledger, now=77.0, later=20_000.0)
    assert ledger.finished
    assert ledger.progress(30_000.0).seconds == 7.0


def left_out(leased: Leased, **rows: int) -> Finish:
    return replace(done(leased), skipped=tuple(Skipped(reason, count) for reason, count in rows.items()))


@pytest.mark.parametrize("survey", [False, True])
def test_rows_left_out_count_once_however_often_they_are_read(survey: bool) -> None:
    ledger = Ledger(plan(chunks=3, epochs=4, every=2, survey=survey), 0.0)
    while (leased := ledger.lease(0)).kind != "finished":
        many = {"number": 2, "fields": leased.chunk} if leased.kind == "train" else {"number": 5}
        ledger.finish(0, left_out(leased, **many), 1.0)
        ledger = Ledger.restored(ledger.plan, through_json(ledger.state(1.0)), 1.0)
    assert ledger.progress(1.0).skipped == (Skipped("fields", 0 + 1 + 2), Skipped("number", 3 * 2 + 3 * 5))


def test_rows_left_out_count_for_each_part_of_a_chunk() -> None:
    ledger = Ledger(plan(chunks=2, epochs=2, partition="hash:user", parts=3), 0.0)
    while (leased := ledger.lease(0)).kind != "finished":
        ledger.finish(0, left_out(leased, missing=1 + (leased.part or 0)), 1.0)
    assert ledger.progress(1.0).skipped == (Skipped("missing", 2 * (1 + 2 + 3)),)


def test_reasons_and_rows_are_believed_within_limits() -> None:
    ledger = Ledger(plan(chunks=20, epochs=1), 0.0)
    with pytest.raises(BadRequest, match="examples"):
        ledger.finish(0, left_out(ledger.lease(0), number=1 << 60), 1.0)
    ledger.give_back(0)
    for number in range(20):
        ledger.finish(0, left_out(ledger.lease(0), **{f"reason-{number}": 1}), 1.0)
    assert len(ledger.progress(1.0).skipped) == MAX_REASONS


def test_measures_that_are_no_numbers_survive() -> None:
    ledger = Ledger(plan(chunks=2, epochs=2, every=1), 0.0)
    ledger.finish(0, done(ledger.lease(0), 2, loss=math.nan), 0.0)
    ledger = restarted(ledger)
    ledger.finish(0, done(ledger.lease(0), 2, loss=1.0), 0.0)
    assert math.isnan(restarted(ledger).progress(0.0).train_loss or 0.0)
    for _ in range(2):
        ledger.finish(0, done(ledger.lease(0), 1, loss=-math.inf, accuracy=0.1), 0.0)
    (evaluation,) = restarted(ledger).progress(0.0).evaluations
    assert {mean.name: mean.value for mean in evaluation.means} == {"loss": -math.inf, "accuracy": 0.1}


class Course:
    """What happens to a ledger, as seeds say; ``answers`` are all that it has said."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.held: dict[int, list[Leased]] = {}
        self.numbers: Counter[int] = Counter()
        self.answers: list[Any] = []

    def go_on(self, rng: random.Random, events: int) -> None:
        for _ in range(events):
            worker, now = rng.randrange(WORKERS), rng.randrange(64) / 64  # exact in any sum
            happens = rng.choice(
                [self._join, *[self._lease] * 4, *[self._finish] * 4, self._reach, self._die]
            )
            happens(worker, rng.randrange(10), now)
            self.answers.append((self.ledger.leases(), replace(self.ledger.progress(0.0), seconds=0.0)))

    def _join(self, worker: int, _: int, now: float) -> None:
        self.ledger.join(worker)

    def _lease(self, worker: int, _: int, now: float) -> None:
        self.numbers[worker] += 1
        leased = self.ledger.lease(worker, self.numbers[worker])
        self.answers.append(leased)
        if leased.kind not in ("wait", "finished"):
            self.held.setdefault(worker, []).append(leased)

    def _finish(self, worker: int, draw: int, now: float) -> None:
        held = self.held.get(worker)
        if held:
            self.ledger.finish(worker, done(held.pop(draw % len(held)), draw, loss=draw / 7, x=now), now)

    def _reach(self, worker: int, draw: int, now: float) -> None:
        self.ledger.reached(worker, self.numbers[worker], draw)

    def _die(self, worker: int, draw: int, now: float) -> None:
        self.held.pop(worker, None)
        if draw:
            self.ledger.give_back(worker)
        else:
            self.held.clear()
            self.ledger.forget_workers()

    def copy(self) -> "Course":
        found = Course(restarted(self.ledger))
        found.held = {worker: list(held) for worker, held in self.held.items()}
        found.numbers = self.numbers.copy()
        return found


def some_plan(rng: random.Random) -> Plan:
    partition = rng.choice(["leases", *CUT])
    early = {"patience": rng.randint(0, 2), "survey": rng.random() < 0.5}
    return plan(
        rng.randint(1, 9), rng.randint(1, 4), rng.randint(0, 3), 0, partition, rng.randint(1, 4), **early
    )


@pytest.mark.parametrize("seed", range(100))
def test_a_ledger_that_was_restored_goes_on_as_if_nothing_had_happened(seed: int) -> None:
    rng = random.Random(seed)
    before = Course(Ledger(some_plan(rng), 0.0))
    before.go_on(rng, rng.randrange(120))
    after = before.copy()
    before.answers.clear()
    before.go_on(random.Random(seed), 120)
    after.go_on(random.Random(seed), 120)
    assert after.answers == before.answers
    saved, again = before.ledger.state(50.0), after.ledger.state(50.0)
    for state in (saved, again):
        del state["seconds"], state["took"]
    assert again == saved


def some_state(partition: str) -> tuple[Plan, Any]:
    """A ledger of which each piece of the state is there, but for what ``surveying`` has."""
    cut = plan(6, 4, 2, partition=partition, parts=2, patience=9)
    ledger = joined(cut, 2)
    while ledger.progress(0.0).phase == "train":
        for worker in (0, 1):
            leased = ledger.lease(worker)
            if leased.kind == "train":
                ledger.finish(worker, done(leased, 2, loss=0.5), 0.0)
    for _ in range(cut.chunks):
        ledger.finish(0, done(ledger.lease(0), 2, loss=0.5), 0.0)
    for number in (1, 2, 3):
        ledger.lease(0, number)
    ledger.finish(1, done(ledger.lease(1, 1), 2, loss=0.5), 0.0)
    ledger.lease(1, 2)
    ledger.reached(0, 2, 3)
    ledger.give_back(0)
    ledger.lease(1, 3)
    return cut, through_json(ledger.state(3.0))


@pytest.mark.parametrize("partition", ["leases", "contiguous", "hash:user"])
def test_a_state_that_is_not_whole_is_refused_by_name(partition: str) -> None:
    cut, state = some_state(partition)
    filled = ["train_loss", "train", "evaluations", "parts", "leases", "skips", "best"]
    assert all(state[name] for name in filled)
    assert bool(state["formerly"]) == (partition != "leases")
    assert_damage_is_refused(state, lambda one: Ledger.restored(cut, one, 3.0).state(3.0), at_least=1000)


def test_a_survey_that_is_not_whole_is_refused_by_name() -> None:
    surveyed = plan(4, survey=True)
    ledger = Ledger(surveyed, 0.0)
    ledger.finish(0, done(ledger.lease(0, 1)), 0.0)
    ledger.lease(1, 1)
    ledger.reached(1, 1, 1)
    ledger.give_back(1)
    ledger.lease(2, 1)
    ledger.lease(2, 2)
    ledger.reached(2, 2, 1)
    ledger.give_back(2)
    ledger.lease(3, 1)
    state = through_json(ledger.state(3.0))
    assert all(state[name] for name in ("leases", "skips", "shared"))
    assert_damage_is_refused(state, lambda one: Ledger.restored(surveyed, one, 3.0).state(3.0), at_least=400)
    with pytest.raises(BadRequest, match="survey"):
        Ledger.restored(replace(surveyed, survey=False), state, 3.0)


def without(state: Any, what: str) -> Any:
    """The state with one piece of work left out, or there twice."""
    state = through_json(state)
    match what:
        case "a lease":
            del state["leases"][0]
        case "a queued chunk":
            del state["parts"][0][2][0][1][0]
        case "a chunk twice":
            chunks = state["parts"][0][2][0][1]
            chunks[0] = chunks[1]
        case "a leased chunk that is queued":
            state["leases"][0][2] = state["parts"][0][2][0][1][0]
        case "a chunk that counts as done":
            state["trained"] += 1
        case "a skip of what is not queued":
            state["skips"][0][1] = state["leases"][0][2]
        case "an evaluation meanwhile":
            state["shared"] = [0]
        case "an early end":
            state["stopped"] = "enough"
        case "the end":
            state["took"] = 1.0
        case "half of the parts":
            state["parts"].pop()
    return state


@pytest.mark.parametrize(
    "what",
    [
        "a lease",
        "a queued chunk",
        "a chunk twice",
        "a leased chunk that is queued",
        "a chunk that counts as done",
        "a skip of what is not queued",
        "an evaluation meanwhile",
        "an early end",
        "the end",
        "half of the parts",
    ],
)
def test_accounts_that_do_not_add_up_are_refused(what: str) -> None:
    cut, state = some_state("contiguous")
    Ledger.restored(cut, state, 0.0)
    with pytest.raises(BadRequest, match="not whole"):
        Ledger.restored(cut, without(state, what), 0.0)


def test_a_state_of_another_plan_is_refused() -> None:
    cut, state = some_state("contiguous")
    for other in (replace(cut, chunks=7), replace(cut, epochs=3), replace(cut, parts=3)):
        with pytest.raises(BadRequest, match="not whole"):
            Ledger.restored(other, state, 0.0)


# --- any order of events

PLANS = st.builds(
    plan,
    chunks=st.integers(1, 5),
    epochs=st.integers(1, 4),
    every=st.integers(0, 3),
    seed=st.integers(0, 3),
    partition=st.sampled_from(["leases", *CUT]),
    parts=st.integers(1, 4),
    survey=st.booleans(),
)
WORKERS = 5


class Oracle:
    """What the rules allow, kept account of apart from the ledger."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ledger = Ledger(plan, 0.0)
        self.parts: dict[int, int] = {}  # of live workers
        self.formerly: dict[int, int] = {}
        self.held: dict[int, list[Leased]] = {worker: [] for worker in range(WORKERS)}
        self.numbers: Counter[int] = Counter()  # of requests
        self.newest: dict[int, Leased] = {}  # what the last one got
        self.batches: Counter[Leased] = Counter()  # mini-batches done
        self.done: Counter[Leased] = Counter()
        self.all = self._all_work()

    def _all_work(self) -> set[Leased]:
        epochs, chunks = range(1, self.plan.epochs + 1), range(self.plan.chunks)
        hashed = self.plan.partition.startswith("hash")
        parts: Sequence[int | None] = range(self.plan.parts) if hashed else [None]
        train = {Leased("train", *one) for one in itertools.product(epochs, chunks, parts)}
        every = self.plan.evaluate_every
        due = [e for e in epochs if every and (e % every == 0 or e == self.plan.epochs)]
        survey = {Leased("survey", 0, chunk) for chunk in chunks if self.plan.survey}
        return survey | train | {Leased("evaluate", *one) for one in itertools.product(due, chunks)}

    def join(self, worker: int) -> None:
        if worker in self.parts:
            return
        self.ledger.join(worker)
        free = sorted(set(range(self.plan.parts)) - set(self.parts.values()))
        if free and self.plan.partition != "leases":
            former = self.formerly.get(worker)
            self.parts[worker] = former if former in free else free[0]

    def die(self, worker: int) -> None:
        self.ledger.give_back(worker)
        self.held[worker] = []
        if worker in self.parts:
            self.formerly[worker] = self.parts.pop(worker)

    def finish(self, worker: int) -> None:
        leased = self.held[worker].pop()
        self.ledger.finish(worker, done(leased), 0.0)
        self.done[leased] += 1

    def lease(self, worker: int) -> None:
        open_ = self._open()
        may = {leased for leased in open_ if self._may(worker, leased)}
        self.numbers[worker] += 1
        given = self.ledger.lease(worker, self.numbers[worker])
        leased = replace(given, skip=0)
        if leased.kind == "finished":
            assert self.all == set(self.done)
        elif leased.kind == "wait":
            assert not may  # nobody waits while there is something for it to do
        else:
            assert leased in may
            assert given.skip == self.batches[leased]
            # What is of an earlier epoch comes first, and in one epoch its own.
            assert self._rank(worker, leased) == min(self._rank(worker, other) for other in may)
            self.held[worker].append(leased)
        self.newest[worker] = leased

    def get_on(self, worker: int) -> None:
        """The newest lease of a worker gets on."""
        leased = self.newest.get(worker)
        if leased is not None and leased in self.held[worker]:
            self.batches[leased] += leased.kind != "evaluate"
            self.ledger.reached(worker, self.numbers[worker], self.batches[leased])

    def restart(self, _: int) -> None:
        self.ledger = restarted(self.ledger)

    def all_die(self, _: int) -> None:
        self.ledger.forget_workers()
        for worker in self.held:
            self.held[worker] = []
        self.formerly |= self.parts
        self.parts.clear()

    def _open(self) -> set[Leased]:
        """What is neither done nor leased and not of a later phase than the one that is not over."""
        out = {leased for leases in self.held.values() for leased in leases}
        left = self.all - set(self.done)
        phase = min((self._phase(leased) for leased in left), default=(0, False))
        return {leased for leased in left - out if self._phase(leased) == phase}

    def _phase(self, leased: Leased) -> tuple[int, bool]:
        """The number of evaluations due before that of ``leased``, and whether it is one; -1: a survey."""
        if leased.kind == "survey":
            return -1, False
        evaluation = leased.kind == "evaluate"
        every = self.plan.evaluate_every
        return ((leased.epoch - 1) // every if every else 0), evaluation

    def _may(self, worker: int, leased: Leased) -> bool:
        if leased.kind != "train" or self.plan.partition == "leases":
            return True
        part = part_of(self.plan, leased)
        return part == self.parts.get(worker) or part not in self.parts.values()

    def _rank(self, worker: int, leased: Leased) -> tuple[int, bool]:
        foreign = leased.kind == "train" and part_of(self.plan, leased) != self.parts.get(worker)
        return leased.epoch, foreign


@given(plan=PLANS, data=st.data())
def test_any_interleaving_does_all_work_exactly_once(plan: Plan, data: st.DataObject) -> None:
    """Workers join, lease, finish, and go away in any order, and the ledger is restored now and then."""
    oracle = Oracle(plan)
    workers = st.integers(0, WORKERS - 1)
    events = st.sampled_from(
        [
            *(
                oracle.lease,
                oracle.lease,
                oracle.lease,
                oracle.finish,
                oracle.finish,
                oracle.join,
                oracle.die,
            ),
            *(oracle.get_on, oracle.get_on, oracle.restart, oracle.all_die),
        ]
    )
    for worker in range(data.draw(workers, label="first")):
        oracle.join(worker)
    for _ in range(data.draw(st.integers(0, 80), label="events")):
        worker, event = data.draw(workers), data.draw(events)
        if event != oracle.finish or oracle.held[worker]:
            event(worker)
    survivors = data.draw(st.sets(workers, min_size=1), label="survivors")
    for worker in set(range(WORKERS)) - survivors:
        oracle.die(worker)
    while not oracle.ledger.finished:  # and in the end the work gets done
        before = oracle.done.total()
        for worker in survivors:
            oracle.lease(worker)
            while oracle.held[worker]:
                oracle.finish(worker)
        assert oracle.done.total() > before
    assert oracle.done == Counter(dict.fromkeys(oracle.all, 1))
    progress = oracle.ledger.progress(0.0)
    assert (progress.chunks_done, progress.chunks_leased) == (progress.chunks, 0)
    assert progress.train_examples == sum(leased.kind == "train" for leased in oracle.all)
    assert {oracle.ledger.lease(worker).kind for worker in range(WORKERS)} == {"finished"}
