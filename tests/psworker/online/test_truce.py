from psworker.online.truce import Truce


def test_a_worker_watches_once_it_has_learnt_something() -> None:
    truce = Truce(100, 50, 0)
    assert not truce.watches(99)
    assert truce.watches(100)


def test_after_a_drift_nobody_watches_for_a_while() -> None:
    truce = Truce(100, 50, 0)
    assert truce.hear(1, 500)
    assert not truce.watches(599)
    assert truce.watches(600)


def test_an_old_drift_is_no_news() -> None:
    truce = Truce(100, 50, 3)
    assert not truce.hear(3, 500)
    assert not truce.hear(2, 500)
    assert truce.watches(500)


def test_what_was_raised_is_lowered_once() -> None:
    truce = Truce(100, 50, 0)
    assert not truce.lowers(1000)
    truce.hear(1, 1000)
    assert not truce.lowers(1049)
    assert truce.lowers(1050)
    assert not truce.lowers(1051)


def test_who_joins_again_counts_from_there() -> None:
    truce = Truce(100, 50, 2, since=1000)
    assert not truce.watches(1099)
    assert truce.watches(1100)
    assert not truce.lowers(1049)
    assert truce.lowers(1050)


def test_who_comes_later_lowers_what_another_has_raised() -> None:
    truce = Truce(100, 50, 2)
    assert not truce.lowers(49)
    assert truce.lowers(50)
