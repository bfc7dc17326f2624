from protocol.status import WorkerStatus
from psctl.workers import by_name, live_first


def worker(name: str, state: str = "training") -> WorkerStatus:
    return WorkerStatus(0, name, 1, state, 0, 0, 0, 0.0, 0.0, 0, None)


WORKERS = (
    worker("w10"), worker("w1", "left"), worker("w2", "suspect"), worker("w3", "dead"), worker("w4", "left"),
    worker("w0", "waiting"),
)  # fmt: skip


def names(workers: list[WorkerStatus]) -> list[str]:
    return [one.name for one in workers]


def test_names_are_in_a_person_s_order() -> None:
    assert names(by_name(WORKERS)) == ["w0", "w1", "w2", "w3", "w4", "w10"]


def test_the_live_come_first_and_then_the_dead() -> None:
    assert names(live_first(WORKERS, None, 20)) == ["w0", "w2", "w10", "w3", "w1", "w4"]


def test_those_that_are_gone_are_limited() -> None:
    assert names(live_first(WORKERS, None, 2)) == ["w0", "w2", "w10", "w3", "w1"]
    assert names(live_first(WORKERS, None, 0)) == ["w0", "w2", "w10"]


def test_all_are_limited() -> None:
    assert names(live_first(WORKERS, 4, 20)) == ["w0", "w2", "w10", "w3"]
    assert live_first(WORKERS, 0, 20) == []
