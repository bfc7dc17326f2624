import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.messages import Finish, Leased, Measure, Plan
from psserver.leases import Ledger


def plan(chunks: int = 4, epochs: int = 2, every: int = 0, seed: int = 0) -> Plan:
    return Plan("text", chunks, epochs, every, seed)


def done(leased: Leased, examples: int = 1, **measures: float) -> Finish:
    means = tuple(Measure(name, value) for name, value in measures.items())
    return Finish(leased.kind, leased.epoch, leased.chunk, examples, means)


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
            finish = Finish("evaluate", leased.epoch, leased.chunk, 1, ())
        case "epoch":
            finish = Finish("train", leased.epoch + 1, leased.chunk, 1, ())
        case "chunk":
            finish = Finish("train", leased.epoch, 99, 1, ())
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
    with pytest.raises(BadRequest, match="at most") as caught:
        Ledger(plan(**{field: 2**62}), 0.0)
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


PLANS = st.builds(
    plan,
    chunks=st.integers(1, 5),
    epochs=st.integers(1, 4),
    every=st.integers(0, 3),
    seed=st.integers(0, 3),
)


@given(plan=PLANS, data=st.data())
def test_any_interleaving_does_each_chunk_exactly_once(plan: Plan, data: st.DataObject) -> None:
    """Workers lease, finish, and go away in any order."""
    ledger = Ledger(plan, 0.0)
    held: dict[int, list[Leased]] = {worker: [] for worker in range(3)}
    trained: Counter[tuple[int, int]] = Counter()
    evaluated: Counter[tuple[int, int]] = Counter()
    for _ in range(data.draw(st.integers(0, 80), label="events")):
        worker = data.draw(st.integers(0, 2))
        event = data.draw(st.sampled_from(["lease", "lease", "finish", "finish", "give_back"]))
        act(ledger, held, worker, event, trained, evaluated)
    for worker in held:  # and in the end the work gets done
        ledger.give_back(worker)
        held[worker] = []
    for leased in work_alone(ledger):
        count(leased, trained, evaluated)
    epochs = range(1, plan.epochs + 1)
    every_chunk = list(itertools.product(epochs, range(plan.chunks)))
    assert trained == Counter(every_chunk)
    due = [e for e in epochs if plan.evaluate_every and (e % plan.evaluate_every == 0 or e == plan.epochs)]
    assert evaluated == Counter((epoch, chunk) for epoch, chunk in every_chunk if epoch in due)
    assert ledger.finished
    progress = ledger.progress(0.0)
    assert (progress.chunks_done, progress.chunks_leased) == (progress.chunks, 0)


def act(
    ledger: Ledger,
    held: dict[int, list[Leased]],
    worker: int,
    event: str,
    trained: Counter[tuple[int, int]],
    evaluated: Counter[tuple[int, int]],
) -> None:
    if event == "lease":
        leased = ledger.lease(worker)
        if leased.kind in ("train", "evaluate"):
            others = [other for leases in held.values() for other in leases]
            assert leased not in others
            # An evaluation sees no training under way, a training no evaluation.
            assert all(other.kind == leased.kind for other in others)
            if leased.kind == "evaluate":
                done_before = {chunk for epoch, chunk in trained if epoch == leased.epoch}
                assert done_before == set(range(ledger.plan.chunks))
            held[worker].append(leased)
    elif event == "finish" and held[worker]:
        leased = held[worker].pop()
        ledger.finish(worker, done(leased), 0.0)
        count(leased, trained, evaluated)
    elif event == "give_back":
        ledger.give_back(worker)
        held[worker] = []


def count(leased: Leased, trained: Counter[tuple[int, int]], evaluated: Counter[tuple[int, int]]) -> None:
    (trained if leased.kind == "train" else evaluated)[leased.epoch, leased.chunk] += 1
