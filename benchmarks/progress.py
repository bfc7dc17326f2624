"""What is being measured right now, for the person who waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[str], None]

_REWRITE_LINE = "\r\x1b[K"


@contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """Yield a function that shows a line: in place of the last on a terminal, else below it."""
    begin, end = (_REWRITE_LINE, "") if stream.isatty() else ("", "\n")

    def show(line: str) -> None:
        stream.write(f"{begin}{line}{end}")
        stream.flush()

    try:
        yield show
    finally:
        stream.write(begin)
        stream.flush()
