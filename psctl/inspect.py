"""``psctl inspect``: what is in a checkpoint, and whether it is sound."""

from __future__ import annotations

import argparse
import os.path
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import configargparse
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from protocol.daemon.exit_codes import ExitCode
from protocol.errors import CheckpointUnusable
from protocol.json_text import json_text
from protocol.messages import SavedFile
from psctl.contents import Found, Inspection, Problem, contents
from psctl.screen import console_for
from psserver.durability.checkpoint import is_complete, numbers, read_manifest, verify
from psserver.durability.directories import number_of
from psserver.durability.manifest import Manifest, files_of
from psserver.durability.object_storage import open_storage
from psserver.durability.storage import Storage

__all__ = ["flags", "inspect", "run"]


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl inspect``."""
    parser.add_argument(
        "place",
        metavar="DIRECTORY",
        help="what servers have as --checkpoint-dir, or one checkpoint in it; or a URL such as s3://bucket/run",
    )
    parser.add_argument(
        "--shard",
        type=int,
        action="append",
        metavar="N",
        help="whose files must be there, if servers have disks of their own (repeatable; default: all)",
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")


def run(options: argparse.Namespace) -> int:
    """Read the checkpoints, every byte of them, and print what is in them.

    Raises:
        OSError: they cannot be read now.
    """
    try:
        storage, number = _opened(options.place)
    except (ValueError, NotADirectoryError, FileNotFoundError) as error:
        print(f"psctl inspect: {error}", file=sys.stderr)
        return ExitCode.USAGE
    found = _with_progress(storage, number, options.shard)
    if options.format == "json":
        print(json_text(found))
    else:
        console_for("stdout").print(contents(found, alone=number is not None))
    newest = found.newest
    return ExitCode.DONE if newest and newest.state == "sound" else ExitCode.CHECKPOINT_UNUSABLE


def _opened(place: str) -> tuple[Storage, int | None]:
    """Return the storage, and the number if ``place`` is one checkpoint.

    Raises:
        FileNotFoundError, NotADirectoryError: it is no directory of this machine.
        ValueError: it names no storage.
    """
    if "://" not in place:
        if not os.path.lexists(place):
            raise FileNotFoundError(f"{place}: there is no such directory")
        if not Path(place).is_dir():
            raise NotADirectoryError(f"{place}: it is no directory; give the one that a checkpoint is in")
        place = str(Path(place).resolve())
    parent, _, name = place.rstrip("/").rpartition("/")
    number = number_of(name)
    return open_storage(place if number is None else parent or "/"), number


def _with_progress(storage: Storage, number: int | None, shards: Collection[int] | None) -> Inspection:
    """Inspect; on a terminal, show how far it is."""
    console = console_for("stderr")
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("reading", total=None)
        return inspect(
            storage,
            number,
            shards=shards,
            expect=lambda nbytes: bar.update(task, total=nbytes),
            progress=lambda nbytes: bar.advance(task, nbytes),
        )


def inspect(
    storage: Storage,
    number: int | None = None,
    *,
    shards: Collection[int] | None = None,
    expect: Callable[[int], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Inspection:
    """Return what is in a storage, every byte of it read.

    Args:
        storage: of checkpoints.
        number: of the checkpoint that is inspected; None: all.
        shards: whose files must be there; None: all.
        expect: is told once how many bytes there are to read.
        progress: is told of bytes as they have been read.

    Raises:
        OSError: the storage cannot be read now.
    """
    wanted = numbers(storage) if number is None else [number]
    manifests = {one: _manifest(storage, one) for one in wanted if is_complete(storage, one)}
    files = {one: _files(manifest, shards) for one, manifest in manifests.items()}
    expect(sum(file.bytes for one in files.values() for file in one))
    found = []
    for one in wanted:
        problems = verify(storage, one, shards=shards, progress=progress) if one in manifests else []
        # A server may be at work: what it has removed meanwhile is not damaged.
        if one in manifests and (not problems or is_complete(storage, one)):
            found.append(_found(one, problems, manifests[one], len(files[one])))
        else:
            found.append(Found(one, "incomplete", 0, (), None))
    usable = max((one.checkpoint for one in found if one.state == "sound"), default=None)
    return Inspection(storage.root, tuple(found), usable)


def _manifest(storage: Storage, number: int) -> Manifest | None:
    """Return a manifest; None if it is damaged, which ``verify`` will tell."""
    try:
        return read_manifest(storage, number)
    except CheckpointUnusable:
        return None


def _found(
    number: int, problems: Sequence[CheckpointUnusable], manifest: Manifest | None, files: int
) -> Found:
    told = tuple(Problem(problem.value, problem.message) for problem in problems)
    return Found(number, "damaged" if told else "sound", files + 1, told, manifest)  # 1: the manifest


def _files(manifest: Manifest | None, shards: Collection[int] | None) -> list[SavedFile]:
    """Return those files of a checkpoint that are read."""
    if manifest is None:
        return []
    wanted = range(manifest.header.shards) if shards is None else shards
    own = {name for shard in wanted for name in files_of(shard)}
    return [file for file in manifest.files if file.name in own]
