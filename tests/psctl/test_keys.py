import asyncio
import os
import termios
from collections.abc import Iterator

import pytest

from psctl.keys import DOWN, PAGE_UP, UP, on_keys


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Return the two ends of a terminal that is standard input: where keys are pressed, where they come."""
    master, slave = os.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield master, slave
    os.close(master)


async def test_the_key_is_noticed_at_once_and_others_are_not(keyboard: tuple[int, int]) -> None:
    master, _ = keyboard
    pressed = asyncio.Event()
    with on_keys({"q": pressed.set}, pressed.set):
        os.write(master, b"x")
        os.write(master, b"q")
        await pressed.wait()


async def test_keys_are_not_shown_and_the_terminal_is_restored(keyboard: tuple[int, int]) -> None:
    _, slave = keyboard
    before = termios.tcgetattr(slave)
    assert before[3] & termios.ECHO
    with on_keys({}, lambda: None):
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON)
        assert termios.tcgetattr(slave)[3] & termios.ISIG
    assert termios.tcgetattr(slave) == before


async def test_another_key_does_nothing(keyboard: tuple[int, int]) -> None:
    master, _ = keyboard
    pressed = asyncio.Event()
    other = asyncio.Event()
    with on_keys({"q": pressed.set}, pressed.set):
        os.write(master, b"xyz")
        loop = asyncio.get_running_loop()
        read, write = os.pipe()  # readable no earlier than the terminal, which the loop then has seen, too
        os.write(write, b".")
        loop.add_reader(read, other.set)
        await other.wait()
        loop.remove_reader(read)
        os.close(read)
        os.close(write)
    assert not pressed.is_set()


async def test_without_a_terminal_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"q")
    with os.fdopen(read) as stdin, os.fdopen(write, "w"):
        monkeypatch.setattr("sys.stdin", stdin)
        pressed = asyncio.Event()
        with on_keys({"q": pressed.set}, pressed.set):
            pass
        assert stdin.read(1) == "q"
    assert not pressed.is_set()


async def test_keys_that_send_several_characters(keyboard: tuple[int, int]) -> None:
    master, _ = keyboard
    seen: list[str] = []
    last = asyncio.Event()
    actions = {key: lambda key=key: seen.append(key) for key in (UP, DOWN, PAGE_UP, "[", "A", "w")}
    with on_keys({**actions, "q": last.set}, last.set):
        os.write(master, f"{DOWN}{UP}w{PAGE_UP}\x1b[Zq".encode())
        await last.wait()
    assert seen == [DOWN, UP, "w", PAGE_UP, "["]  # of what is no such key, each character is one


async def test_the_end_of_the_terminal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    ended = asyncio.Event()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with on_keys({}, ended.set):
            os.write(master, b"\x04")  # Ctrl-D does not end it: keys come one by one
            os.close(master)
            await ended.wait()
