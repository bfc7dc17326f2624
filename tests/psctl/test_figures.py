import math

import pytest

from psctl.figures import count, figure, names, plural, printable, silence, size, span, togetherness


def test_peers_texts_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\n\u202ec\x9b") == "a\\x1b[2Jb\\n\\u202ec\\x9b"
    assert printable("wörker 3 日本") == "wörker 3 日本"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0.0000"), (0.1234567, "0.1235"), (-2.5, "-2.5000"), (1e-6, "1.000e-06"),
        (123456.0, "1.235e+05"), (float("nan"), "nan"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_figure(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_counts_and_plurals() -> None:
    assert count(1234567.8) == "1,234,568"
    assert plural(1, "server") == "1 server"
    assert plural(0, "worker") == "0 workers"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00"),
        (59.6, "1:00"),
        (125, "2:05"),
        (3725, "1:02:05"),
        (280_844, "3 d 06:00:44"),
        (math.inf, "-"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")]
)
def test_size(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("who", "text"),
    [
        ((), ""), (("w1",), "w1"), (("w1", "w2"), "w1 and w2"), (("w1", "w2", "w3"), "w1, w2 and w3"),
        (("w3", "w5", "a", "b", "c", "d"), "w3, w5 and 4 more"), (("a\x1b",), "a\\x1b"),
    ],
)  # fmt: skip
def test_names(who: tuple[str, ...], text: str) -> None:
    assert names(who) == text


def test_names_of_whom_not_all_are_known() -> None:
    assert names(("a", "b", "c", "d"), all_known=False) == "a, b and at least 2 more"


@pytest.mark.parametrize(
    ("staleness", "text"),
    [
        (0.0, "synchronous"), (1.0, "stale by at most 1 step"), (3.0, "stale by at most 3 steps"),
        (12345678.0, "stale by at most 12345678 steps"), (math.inf, "asynchronous"),
    ],
)  # fmt: skip
def test_togetherness(staleness: float, text: str) -> None:
    assert togetherness(staleness) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (99.94, "99.9 s"), (100.0, "1:40")])
def test_silence(seconds: float, text: str) -> None:
    assert silence(seconds) == text
