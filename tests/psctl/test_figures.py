import math

import pytest

from psctl.figures import count, figure, plural, printable, size, span


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
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05"), (math.inf, "-")]
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")]
)
def test_size(number: int, text: str) -> None:
    assert size(number) == text
