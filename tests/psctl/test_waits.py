import pytest

from protocol.status import Wait
from psctl.waits import felt, sentence


def wait(
    what: str = "step 31",
    waiting: int = 3,
    who: tuple[str, ...] = ("w3",),
    seconds: float = 2.0,
    shard: int = 0,
) -> Wait:
    return Wait("digits", shard, what, waiting, who, seconds)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (wait(), "step 31: 3 wait for w3 (2.0 s)"),
        (wait(waiting=1), "step 31: 1 waits for w3 (2.0 s)"),
        (wait("start", who=()), "start: 3 wait (2.0 s)"),
        (
            wait("chunks", who=("w3", "w5", "a", "b", "c", "d")),
            "chunks: 3 wait for w3, w5 and 4 more (2.0 s)",
        ),
        (
            wait(who=tuple(f"w{i}" for i in range(16))),  # of whom there may be more
            "step 31: 3 wait for w0, w1 and at least 14 more (2.0 s)",
        ),
        (wait("tensor \x1b", who=("\r",)), "tensor \\x1b: 3 wait for \\r (2.0 s)"),
    ],
)
def test_a_wait_in_words(one: Wait, text: str) -> None:
    assert sentence(one) == text


def test_waits_that_nobody_feels_are_left_out() -> None:
    assert felt([wait(seconds=0.49)]) == []
    assert felt([wait(seconds=0.5)]) == [wait(seconds=0.5)]


def test_the_longest_comes_first() -> None:
    short, long = wait("step 31", seconds=1.0), wait("chunks", seconds=9.0)
    assert felt([short, long]) == [long, short]


def test_shards_that_wait_for_the_same_are_one() -> None:
    waits = [
        wait(waiting=2, who=("w3", "w5"), seconds=2.0),
        wait(waiting=4, who=("w5", "w1"), seconds=1.0, shard=1),
        wait("step 32", waiting=1, seconds=3.0, shard=2),
    ]
    assert felt(waits) == [
        wait("step 32", waiting=1, seconds=3.0, shard=2),
        wait(waiting=4, who=("w3", "w5", "w1"), seconds=2.0),
    ]
