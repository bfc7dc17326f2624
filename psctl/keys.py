"""Keys pressed on the terminal, as events of the loop."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["DOWN", "PAGE_DOWN", "PAGE_UP", "UP", "on_keys"]

UP: Final = "\x1b[A"
DOWN: Final = "\x1b[B"
PAGE_UP: Final = "\x1b[5~"
PAGE_DOWN: Final = "\x1b[6~"


@contextmanager
def on_keys(actions: Mapping[str, Callable[[], object]], ended: Callable[[], object]) -> Iterator[None]:
    """Call an action in the running event loop when its key is pressed.

    When the terminal goes away, ``ended`` is called. Keys are not shown meanwhile; Ctrl-C still is a signal.
    Where standard input is no terminal, nothing is read.
    """
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        pressed = os.read(terminal, 1024).decode(errors="replace")
        if not pressed:
            loop.remove_reader(terminal)
            ended()
        for key in _keys(pressed):
            if key in actions:
                actions[key]()

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        with suppress(termios.error):  # the terminal has gone away
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _keys(pressed: str) -> Iterator[str]:
    """Yield one key after the other: a character, or the sequence that a key such as ``UP`` sends."""
    while pressed:
        length = next((len(key) for key in (UP, DOWN, PAGE_UP, PAGE_DOWN) if pressed.startswith(key)), 1)
        yield pressed[:length]
        pressed = pressed[length:]
