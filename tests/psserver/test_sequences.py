import gc
import weakref
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.connection import Connection
from protocol.errors import BadRequest, BadTensor, Conflict, NotFinite, OutOfOrder, PSError
from protocol.messages import Empty, Leased, Pulled, Pushed
from protocol.sequences import UNDER_WAY, WINDOW
from psserver.call import Call
from psserver.metrics import ServerMetrics
from psserver.sequences import Outcome, Sequence
from tests.psserver.saved_states import assert_damage_is_refused, through_json


@dataclass(frozen=True, slots=True)
class Opened:
    """All that a call's taking over looks at of a connection: when it was made."""

    opened: float


def call(request_id: int = 1, opened: float = 0.0) -> Call:
    return Call(cast(Connection, Opened(opened)), request_id, "push", ServerMetrics(dict))


def said(outcome: Outcome) -> Any:
    """What a peer learns of an outcome."""
    if isinstance(outcome, PSError):
        return outcome.code, outcome.message, outcome.field, outcome.value
    return outcome


def test_the_next_number_is_new_and_all_before_it_are_retries() -> None:
    sequence = Sequence()
    assert sequence.is_new(1)
    sequence.admit(1, 7, call())
    assert sequence.is_new(2)
    assert not sequence.is_new(1)


@pytest.mark.parametrize("seq", [2, 3, 2**63 - 1])
def test_a_gap_is_refused_and_consumes_nothing(seq: int) -> None:
    sequence = Sequence()
    with pytest.raises(OutOfOrder, match="next number of this worker is 1") as caught:
        sequence.is_new(seq)
    assert (caught.value.field, caught.value.value) == ("seq", str(seq))
    assert sequence.is_new(1)


@pytest.mark.parametrize("outcome", [Pushed(3), Empty(), Leased("train", 1, 2), NotFinite("no"), None])
def test_what_was_answered_is_answered_again(outcome: Outcome) -> None:
    sequence = Sequence()
    sequence.admit(1, 7, call())
    sequence.answered(1, outcome)
    for _ in range(3):
        answer, again = sequence.retry(1, 7, call())
        assert (answer, said(again)) == (True, said(outcome))
    assert (sequence.last, sequence.duplicates) == (1, 3)


def test_a_retry_that_finds_its_first_try_unanswered_takes_its_place() -> None:
    sequence = Sequence()
    first, retry = call(1, opened=1.0), call(9, opened=2.0)
    sequence.admit(1, 7, first)
    assert sequence.retry(1, 7, retry) == (False, None)
    assert (first.connection, first.request_id) == (retry.connection, 9)


def test_a_copy_that_comes_late_on_an_older_connection_takes_nothing() -> None:
    sequence = Sequence()
    first, stale = call(1, opened=2.0), call(9, opened=1.0)
    sequence.admit(1, 7, first)
    assert sequence.retry(1, 7, stale) == (False, None)
    assert (first.connection.opened, first.request_id) == (2.0, 1)


def test_another_content_under_a_used_number_is_a_conflict_and_changes_nothing() -> None:
    sequence = Sequence()
    sequence.admit(1, 7, call())
    sequence.answered(1, Pushed(1))
    with pytest.raises(Conflict) as caught:
        sequence.retry(1, 8, call())
    assert (caught.value.field, caught.value.value) == ("seq", "1")
    assert sequence.duplicates == 0
    assert sequence.retry(1, 7, call()) == (True, Pushed(1))


def test_a_refused_number_is_consumed_and_its_error_is_given_again() -> None:
    sequence = Sequence()
    error = BadTensor("the block here has 4 elements", field="w\n", value="5 of\x00 float32 " * 20)
    sequence.refuse(1, error)
    assert sequence.is_new(2)
    for _ in range(2):
        assert said(sequence.refused(1)) == said(error)


def test_what_is_remembered_is_bounded_and_covers_what_may_be_under_way() -> None:
    sequence = Sequence()
    for seq in range(1, 10 * WINDOW + 1):
        sequence.admit(seq, seq, call())
        sequence.answered(seq, Pushed(seq))
    last = sequence.last
    assert sequence.retry(last - UNDER_WAY + 1, last - UNDER_WAY + 1, call())[0]
    assert sequence.retry(last - WINDOW + 1, last - WINDOW + 1, call()) == (True, Pushed(last - WINDOW + 1))
    with pytest.raises(OutOfOrder, match="remembered"):
        sequence.is_new(last - WINDOW)


def test_an_answer_to_a_number_that_is_forgotten_is_no_others() -> None:
    sequence = Sequence()
    for seq in range(1, WINDOW + 2):
        sequence.admit(seq, seq, call())
    sequence.answered(1, NotFinite("of the first"))
    assert all(sequence.refused(seq) is None for seq in range(2, WINDOW + 2))


class Gradient:
    """Stands for the memory of a push."""


def fails_with(gradient: Gradient) -> PSError:
    """An error that was raised and caught: its traceback names this frame, which holds the gradient."""
    try:
        raise NotFinite("NaN", field="w", value=gradient)
    except PSError as error:
        return error


@pytest.mark.parametrize("how", ["refused", "answered"])
def test_an_error_that_is_remembered_keeps_no_gradient_alive(how: str) -> None:
    sequence = Sequence()
    gradient = Gradient()
    alive = weakref.ref(gradient)
    if how == "refused":
        sequence.refuse(1, fails_with(gradient))
    else:
        sequence.admit(1, 7, call())
        sequence.answered(1, fails_with(gradient))
    del gradient
    gc.collect()
    assert alive() is None
    assert sequence.refused(1) is not None


def test_raising_a_remembered_error_again_and_again_costs_no_memory() -> None:
    sequence = Sequence()
    sequence.refuse(1, NotFinite("NaN"))
    for _ in range(3):
        refused = sequence.refused(1)
        assert refused is not None
        assert refused.__traceback__ is None
        with pytest.raises(NotFinite):
            raise refused


@dataclass(slots=True)
class Entry:
    """One number in the naive model, which forgets nothing."""

    content: int
    call: Call | None
    outcome: Outcome = None
    refused: bool = False
    applied: bool = False
    open: bool = False


class Naive:
    """What the rules say, with all numbers remembered in a list."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def expected(self, seq: int, content: int) -> Any:
        last = len(self.entries)
        if seq == last + 1:
            return "new"
        if seq > last or seq <= last - WINDOW:
            return OutOfOrder
        entry = self.entries[seq - 1]
        if entry.open:
            return "new"
        if entry.refused:
            return said(entry.outcome)
        if entry.content != content:
            return Conflict
        return "pending" if entry.call is not None else ("again", said(entry.outcome))

    def take(self, seq: int, entry: Entry) -> None:
        self.entries[seq - 1 : seq] = [entry]

    def restart(self) -> None:
        for entry in self.entries:
            entry.open |= entry.call is not None and not entry.applied
            entry.call = None


def ask(sequence: Sequence, seq: int, content: int, one: Call) -> Any:
    """Ask as a shard does."""
    try:
        if sequence.is_new(seq):
            sequence.admit(seq, content, one)
            return "new"
        if (refused := sequence.refused(seq)) is not None:
            return said(refused)
        answer, outcome = sequence.retry(seq, content, one)
    except (OutOfOrder, Conflict) as error:
        return type(error)
    return ("again", said(outcome)) if answer else "pending"


# --- after a restart


def restarted(sequence: Sequence) -> Sequence:
    again = Sequence.restored(through_json(sequence.state()))
    assert again.state() == sequence.state()
    return again


ALL: list[Outcome] = [
    Pushed(3),
    Empty(),
    Leased("train", 1, 2, part=3, skip=4),
    Pulled(5, (), 6),
    BadTensor("the block\n", field="w", value="5 of\x00 float32 " * 20),
    None,
]


def test_what_was_answered_before_a_restart_is_answered_again() -> None:
    sequence = Sequence()
    for seq, outcome in enumerate(ALL, 1):
        sequence.admit(seq, 7, call())
        sequence.answered(seq, outcome)
    again = restarted(restarted(sequence))
    for seq, outcome in enumerate(ALL, 1):
        assert not again.is_new(seq)
        answer, found = again.retry(seq, 7, call())
        assert (answer, said(found)) == (True, said(outcome))
        with pytest.raises(Conflict):
            again.retry(seq, 8, call())


def test_what_was_not_answered_before_a_restart_is_done_then_and_only_once() -> None:
    sequence = Sequence()
    for seq in (1, 2, 3):
        sequence.admit(seq, seq, call())
    sequence.answered(2, Pushed(1))
    again = restarted(sequence)
    assert [again.is_new(seq) for seq in (1, 2, 3)] == [True, False, True]
    again.admit(1, 1, call())
    assert not again.is_new(1)
    again.refuse(3, NotFinite("no"))
    assert again.refused(3) is not None
    again.answered(1, Pushed(2))
    assert again.retry(1, 1, call()) == (True, Pushed(2))
    assert (again.last, again.is_new(4)) == (3, True)


def test_what_was_applied_and_not_yet_answered_is_not_done_again() -> None:
    sequence = Sequence()
    for seq in (1, 2):
        sequence.admit(seq, 7, call())
        sequence.applied(seq, Pushed(seq) if seq == 2 else None)
    assert sequence.retry(1, 7, call()) == (False, None)  # its answer is on its way
    again = restarted(sequence)
    assert [again.retry(seq, 7, call()) for seq in (1, 2)] == [(True, None), (True, Pushed(2))]


def test_a_log_fills_in_what_a_checkpoint_left_open() -> None:
    sequence = Sequence()
    for seq in (1, 2):
        sequence.admit(seq, seq, call())
    again = restarted(sequence)
    again.completed(2, 2, Pushed(1))
    again.completed(5, 5, None)
    assert [again.is_new(seq) for seq in range(1, 7)] == [True, False, True, True, False, True]
    again.completed(2, 2, Pushed(9))  # the checkpoint knew it already
    assert again.retry(2, 2, call()) == (True, Pushed(1))
    assert again.retry(5, 5, call()) == (True, None)


def test_a_log_that_goes_far_is_remembered_as_far_as_a_window() -> None:
    sequence = Sequence()
    sequence.completed(10**15, 7, Pushed(1))
    with pytest.raises(OutOfOrder, match="remembered"):
        sequence.is_new(10**15 - WINDOW)
    assert sequence.is_new(10**15 - WINDOW + 1)
    sequence.completed(10**15 - WINDOW, 7, Pushed(1))  # too long ago to be asked for
    assert (sequence.last, sequence.is_new(10**15)) == (10**15, False)
    assert restarted(sequence).retry(10**15, 7, call()) == (True, Pushed(1))


def test_numbers_that_were_refused_before_a_restart_are_missed_by_nobody() -> None:
    """A client has 5, 6 and 7 under way; 6 is refused, which no log tells; 5 and 7 are sent again."""
    sequence = Sequence()
    for seq in range(1, 5):
        sequence.completed(seq, seq, Pushed(seq))
    for seq in (5, 7):
        assert sequence.is_new(seq)
        sequence.admit(seq, seq, call())
    assert (sequence.is_new(6), sequence.is_new(8)) == (True, True)


@pytest.mark.parametrize("first", [5, 6, 1000])
def test_after_what_can_have_been_under_way_nothing_may_be_missing(first: int) -> None:
    sequence = Sequence()
    sequence.completed(4, 4, None)
    assert sequence.is_new(first)
    sequence.admit(first, 1, call())
    assert sequence.is_new(first + UNDER_WAY)
    with pytest.raises(OutOfOrder, match=f"next number of this worker is {first + 1}"):
        sequence.is_new(first + UNDER_WAY + 1)
    for seq in range(first + 1, first + 2 * UNDER_WAY):
        assert sequence.is_new(seq)
        sequence.admit(seq, 1, call())
        with pytest.raises(OutOfOrder, match="next number"):
            sequence.is_new(max(seq + 2, first + UNDER_WAY + 1))


def test_a_worker_that_is_new_leaves_nothing_out_until_it_is_said_that_there_was_a_restart() -> None:
    sequence = Sequence()
    with pytest.raises(OutOfOrder):
        sequence.is_new(3)
    sequence.resume()
    assert sequence.is_new(3)


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    sequence = Sequence()
    for seq, outcome in enumerate(ALL, 1):
        sequence.admit(seq, 7, call())
        sequence.answered(seq, outcome)
    sequence.admit(len(ALL) + 1, 7, call())
    assert_damage_is_refused(
        through_json(sequence.state()), lambda state: Sequence.restored(state).state(), at_least=500
    )


def test_a_state_with_more_numbers_than_there_were_is_refused() -> None:
    state = Sequence().state()
    for last, count in ((1, 2), (WINDOW + 5, WINDOW + 1)):
        with pytest.raises(BadRequest, match="numbers") as caught:
            Sequence.restored({**state, "last": last, "recent": [None] * count})
        assert caught.value.field == "last"


OUTCOMES = st.sampled_from([None, Pushed(1), Pushed(2), Empty()])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(-WINDOW - 1, 2), st.integers(1, 2)),
        st.tuples(st.just("send"), st.integers(-3, 1), st.integers(1, 2)),
        st.tuples(st.just("answer"), st.integers(-5, 0), OUTCOMES),
        st.tuples(st.just("apply"), st.integers(-5, 0), OUTCOMES),
        st.tuples(st.just("refuse"), st.integers(-3, 1), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(before=st.sampled_from([0, 0, 3, WINDOW - 1, WINDOW, WINDOW + 2]), events=EVENTS)
def test_as_if_everything_were_remembered(before: int, events: list[tuple[str, int, Any]]) -> None:
    sequence, naive, had_restart = Sequence(), Naive(), False
    for seq in range(1, before + 1):
        one = call(seq)
        sequence.admit(seq, 1, one)
        naive.entries.append(Entry(1, one))
    for number, (event, offset, what) in enumerate(events):
        seq = max(1, len(naive.entries) + offset)
        pending = naive.entries[seq - 1] if seq <= len(naive.entries) else None
        if event == "send":
            if seq > len(naive.entries) + 1 and had_restart:
                continue  # whether it may be left out is another test
            one = call(1000 + number, opened=float(number))
            expected = naive.expected(seq, what)
            assert ask(sequence, seq, what, one) == expected
            if expected == "new":
                naive.take(seq, Entry(what, one))
            elif expected == "pending":
                assert pending is not None
                assert pending.call is not None
                assert (pending.call.connection, pending.call.request_id) == (one.connection, one.request_id)
        elif event == "refuse":
            if naive.expected(seq, 1) == "new":
                error = BadTensor("no", field="w", value=number)
                sequence.refuse(seq, error)
                naive.take(seq, Entry(0, None, error, refused=True))
        elif event == "restart":
            sequence, had_restart = restarted(sequence), True
            naive.restart()
        elif pending is not None and pending.call is not None:
            if event == "answer":
                sequence.answered(seq, what)
                pending.call = None
            else:
                sequence.applied(seq, what)
                pending.applied = True
            pending.outcome = what
        assert sequence.last == len(naive.entries)
