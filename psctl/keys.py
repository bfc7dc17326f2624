"""A key pressed on the terminal, as an event of the loop."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["on_key"]


@contextmanager
def on_key(key: str, then: Callable[[], object]) -> Iterator[None]:
    """Call ``then`` in the running event loop when ``key`` is pressed, or the terminal goes away.

    Keys are not shown meanwhile; Ctrl-C still is a signal. Where standard input is no terminal, nothing is
    read.
    """
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        pressed = os.read(terminal, 1024)
        if not pressed:
            loop.remove_reader(terminal)
        if not pressed or key.encode() in pressed:
            then()

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
