"""Numbers on the command line that must be above zero, and lists of sizes."""

from argparse import ArgumentTypeError

from benchmarks.sizes import parse_size


def positive_int(text: str) -> int:
    """Return the whole number above 0 that `text` says, or raise ArgumentTypeError."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def positive_float(text: str) -> float:
    """Return the finite number above 0 that `text` says, or raise ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def sizes(text: str) -> tuple[int, ...]:
    """Return the bytes of each of the sizes that `text` lists, or raise ArgumentTypeError."""
    try:
        return tuple(dict.fromkeys(parse_size(size) for size in text.split(",")))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
