"""Places where a test makes a server fail: die, stall, or be refused by its disk.

    PSSERVER_FAILPOINTS='log.after-write=kill@3;checkpoint.prune=stall:2s;log.before-write=error:ENOSPC@2-5'

Entries are ``NAME=ACTION[@HITS]``, with ``;`` between them. ``kill`` ends the process as SIGKILL does,
``stall:2s`` blocks the calling thread (and an event loop that runs in it), ``error:ENOSPC`` raises that
``OSError``. ``@3`` is the third time that the place is reached, ``@2-5`` the second to the fifth; without it,
every time. A name may have several entries.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from protocol.daemon.settings import duration

__all__ = ["NAMES", "configure", "failpoint"]

NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "log.before-write": "records are collected, nothing of them is in the log's file",
        "log.after-write": "records are in the file but not synced",
        "log.after-sync": "records are durable, nobody has been told so",
        "log.new-segment": "a segment is full, the next one is about to be made",
        "log.drop-segment": "a checkpoint has made a segment superfluous, it is about to be removed",
        "checkpoint.tensors-written": "a shard's tensors are in their file but not synced",
        "checkpoint.tensors-synced": "a shard's tensors are durable, its state is not written",
        "checkpoint.state-written": "a shard's tensors and state are durable, nobody has been told so",
        "checkpoint.before-manifest": "all shards' files are durable, the manifest is not there",
        "checkpoint.after-manifest": "the checkpoint is complete, nobody has been told so",
        "checkpoint.prune": "an old checkpoint's manifest is removed, its other files are not",
        "cut.held": "a shard holds back what comes after the cut",
        "cut.taken": "a shard has its versions of the cut, and still holds back what comes after",
        "cut.told": "a shard has told that its part is durable; the coordinator is about to tell that all is",
        "restore.begin": "a shard is asked to restore and has read nothing",
        "restore.loaded": "a checkpoint is read and checked, the old state is still in use",
        "restore.installed": "a shard has the restored state, nobody has been told so",
        "restart.recovered": "a restarted server has the state of its disk and no place in the cluster yet",
        "restart.joined": "a restarted server has its place again and serves nobody yet",
        "membership.before-announce": "the coordinator has a new epoch that no shard knows",
        "membership.announced": "all shards follow a new epoch, no worker has been told",
        "membership.before-decide": "a step is decided, no other shard has been told",
        "drop.forgotten": "the coordinator has forgotten a job that is dropped, nothing of that is durable",
        "drop.durable": "that a job is dropped is durable, no other shard has been told",
        "drop.followed": "another shard has forgotten a job that was dropped, that is not durable there",
        "drop.told": "all shards have forgotten a job that was dropped, who asked for it has not been told",
    }
)
"""All failpoints, and what is true where they are."""

_ENTRY: Final = re.compile(r"([^=]+)=([^@]+)(?:@(\d+)(?:-(\d+))?)?")

_ERRNOS: Final = {name: number for number, name in errno.errorcode.items()}


@dataclass(frozen=True, slots=True)
class _Fault:
    """What happens at the hits from ``first`` to ``last``; no ``last`` is for ever."""

    act: Callable[[str], None]
    first: int
    last: int | None

    def applies(self, hit: int) -> bool:
        return self.first <= hit and (self.last is None or hit <= self.last)


_faults: dict[str, list[_Fault]] = {}  # empty: off. Replaced as a whole, never changed
_hits: Counter[str] = Counter()
_counting: Final = threading.Lock()


def failpoint(name: str) -> None:
    """Do what is configured for this place; nothing unless a test did.

    Raises:
        OSError: that is what is configured.
        ValueError: failpoints are on and ``name`` is not in ``NAMES``.
    """
    if _faults:
        _reach(name)


def configure(text: str) -> None:
    """Turn failpoints on as ``text`` says, instead of what was configured before; ``""`` turns them off.

    Hits are counted from here on.

    Raises:
        ValueError: the text, quoted in the message, is not of the form above.
    """
    global _faults  # noqa: PLW0603 (a failpoint is reached from everywhere and must cost nothing)
    faults: dict[str, list[_Fault]] = {}
    for entry in text.split(";"):
        if entry.strip():
            name, fault = _parse(entry.strip())
            faults.setdefault(name, []).append(fault)
    with _counting:
        _hits.clear()
        _faults = faults


def _reach(name: str) -> None:
    _check_name(name)
    with _counting:
        _hits[name] += 1
        due = [fault for fault in _faults.get(name, ()) if fault.applies(_hits[name])]
    for fault in due:
        fault.act(name)


def _parse(entry: str) -> tuple[str, _Fault]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{entry!r} is no failpoint; write for example log.after-write=kill@3")
    name, action, first, last = match.groups()
    _check_name(name)
    if first is None:
        return name, _Fault(_action(action, entry), 1, None)
    hits = int(first), int(last or first)
    if not 1 <= hits[0] <= hits[1]:
        raise ValueError(f"{entry!r}: hits are counted from 1, and the first comes first, as in @2-5")
    return name, _Fault(_action(action, entry), *hits)


def _check_name(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        remedy = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(NAMES)}"
        raise ValueError(f'there is no failpoint "{name}"; {remedy}')


def _action(text: str, entry: str) -> Callable[[str], None]:
    kind, colon, detail = text.partition(":")
    match kind:
        case "kill" if not colon:
            return _kill
        case "stall":
            return _stall(detail, entry)
        case "error":
            return _error(detail, entry)
        case _:
            raise ValueError(f'{entry!r}: "{text}" is no action; known: kill, stall:DURATION, error:ERRNO')


def _kill(name: str) -> None:
    del name
    os.kill(os.getpid(), signal.SIGKILL)


def _stall(detail: str, entry: str) -> Callable[[str], None]:
    try:
        seconds = duration(detail)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{entry!r}: {error}") from error
    return lambda _: time.sleep(seconds)


def _error(detail: str, entry: str) -> Callable[[str], None]:
    number = _ERRNOS.get(detail)
    if number is None:
        near = difflib.get_close_matches(detail, _ERRNOS, n=1)
        remedy = f'did you mean "{near[0]}"?' if near else "write for example ENOSPC or EIO"
        raise ValueError(f'{entry!r}: "{detail}" is no error number\'s name; {remedy}')

    def fail(name: str) -> None:
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")

    return fail
