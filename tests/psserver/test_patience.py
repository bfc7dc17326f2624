from dataclasses import replace

import pytest

from psserver.patience import LEAST_RATE, Patience, PatienceSettings, Seen

AT_REST = Seen(greeted=True, received=1000, drained=1000, unsent=0, is_amid=False, is_awaited=False)
OPENED = 500.0


def patience(**settings: float) -> Patience:
    return Patience(PatienceSettings(**settings), OPENED)


def looks(patience: Patience, seconds: int, first: Seen, **rates: float) -> tuple[str, int]:
    """Look once a second while counts go up at ``rates``; return the verdict, and after how long it came."""
    for second in range(seconds + 1):
        counts = {name: int(getattr(first, name) + rate * second) for name, rate in rates.items()}
        verdict = patience.look(replace(first, **counts), OPENED + second)  # type: ignore[arg-type]
        if verdict:
            return verdict, second
    return "", seconds


def test_who_says_no_hello_whatever_else_it_sends() -> None:
    stranger = replace(AT_REST, greeted=False, is_amid=True)
    assert looks(patience(), 100, stranger, received=1e6) == ("no_hello", 5)


@pytest.mark.parametrize("rate", [0, 0.1, 1, LEAST_RATE / 2])
def test_a_frame_that_stands_still_or_trickles(rate: float) -> None:
    assert looks(patience(), 100, replace(AT_REST, is_amid=True), received=rate) == ("slow_frame", 10)


@pytest.mark.parametrize("rate", [LEAST_RATE, 10 * LEAST_RATE, 1e9])
def test_a_frame_that_comes_slowly_but_surely(rate: float) -> None:
    assert looks(patience(), 1000, replace(AT_REST, is_amid=True), received=rate) == ("", 1000)


def test_a_frame_that_stops_in_the_middle() -> None:
    waits = patience()
    amid = replace(AT_REST, is_amid=True)
    for second in range(20):
        assert waits.look(replace(amid, received=100_000 * second), OPENED + second) == ""
    assert waits.look(replace(amid, received=1_900_000), OPENED + 28) == ""
    assert waits.look(replace(amid, received=1_900_000), OPENED + 29) == "slow_frame"


def test_each_frame_has_a_time_of_its_own() -> None:
    waits = patience()
    for second in range(100):
        seen = replace(AT_REST, received=second, is_amid=second % 9 > 0)
        assert waits.look(seen, OPENED + second) == ""


@pytest.mark.parametrize("rate", [0, 0.1, 1, LEAST_RATE / 2])
def test_replies_that_are_not_read_or_in_trickles(rate: float) -> None:
    assert looks(patience(), 100, replace(AT_REST, unsent=10**9), drained=rate) == ("not_reading", 30)


def test_who_asks_on_and_on_and_reads_nothing() -> None:
    assert looks(patience(), 100, replace(AT_REST, unsent=10**9), received=1e6) == ("not_reading", 30)


def test_replies_that_are_read_slowly() -> None:
    assert looks(patience(), 1000, replace(AT_REST, unsent=10**9), drained=LEAST_RATE) == ("", 1000)


def test_silence() -> None:
    assert looks(patience(), 100, AT_REST) == ("idle", 60)


def test_a_word_now_and_then_is_enough() -> None:
    assert looks(patience(), 1000, AT_REST, received=1 / 59) == ("", 1000)


def test_who_waits_for_an_answer_need_not_say_more() -> None:
    assert looks(patience(), 1000, replace(AT_REST, is_awaited=True)) == ("", 1000)


def test_silence_begins_when_the_answer_has_been_read() -> None:
    waits = patience()
    assert waits.look(replace(AT_REST, is_awaited=True), OPENED + 100) == ""
    assert waits.look(AT_REST, OPENED + 159) == ""
    assert waits.look(AT_REST, OPENED + 160) == "idle"


def test_where_heartbeats_are_rare_silence_is_longer() -> None:
    waits = patience()
    assert waits.look(AT_REST, OPENED, 300.0) == ""
    assert waits.look(AT_REST, OPENED + 299, 300.0) == ""
    assert waits.look(AT_REST, OPENED + 300, 300.0) == "idle"
    assert looks(patience(idle=5.0), 100, AT_REST) == ("idle", 5)
