"""What is in checkpoints, as ``psctl inspect`` shows it. Pure: what was found in, tables out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from protocol.messages import TensorInfo
from protocol.optimizers import OptimizerSpec, ScheduleSpec
from protocol.tensors import DTYPES
from psctl.figures import count, plural, printable, size, togetherness
from psctl.tables import add, indented, table
from psserver.durability.manifest import Manifest, SavedJob

__all__ = ["Found", "Inspection", "Problem", "State", "contents"]

State = Literal["sound", "damaged", "incomplete"]

_STYLES: Final = {"sound": "green", "damaged": "red", "incomplete": "dim"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, a path within the storage."""

    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """One checkpoint. ``incomplete``: it has no manifest, so it was given up or is being written.

    ``files`` are those that were read to the last byte, the manifest among them.
    """

    checkpoint: int
    state: State
    files: int
    problems: tuple[Problem, ...]
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """All checkpoints of a place, the oldest first, or the one that was asked for.

    ``usable`` is the number of the newest that is sound: a server that starts would go on from it.
    """

    place: str
    checkpoints: tuple[Found, ...]
    usable: int | None

    @property
    def newest(self) -> Found | None:
        """The newest that was completed."""
        return next((one for one in reversed(self.checkpoints) if one.state != "incomplete"), None)


def contents(inspection: Inspection, *, alone: bool) -> RenderableType:
    """Return a table of all checkpoints, unless one was asked for ``alone``, and the newest in detail.

    Of those that are damaged, all that are newer than the newest that is sound are told by file.
    """
    newest = inspection.newest
    parts: list[RenderableType] = []
    if not alone:
        heading = f"{plural(len(inspection.checkpoints), 'checkpoint')} in {printable(inspection.place)}"
        parts += [Text(heading, style="bold"), indented(_all(inspection)), Text()]
    if newest is None:
        parts.append(Text("there is no complete checkpoint", style="red"))
    else:
        parts += _detail(newest.manifest) if newest.manifest else []
        parts += _soundness(inspection, newest)
        if inspection.usable not in {None, newest.checkpoint}:
            parts.append(Text(f"checkpoint {inspection.usable} is the newest that is sound"))
    return Group(*parts)


def _all(inspection: Inspection) -> RenderableType:
    drawn = table(">checkpoint", "<taken", ">timeline", ">shards", ">jobs", ">size", "<state")
    for found in inspection.checkpoints:
        manifest = found.manifest
        figures = ("-",) * 5
        if manifest is not None:
            header, jobs = manifest.header, len(manifest.jobs)
            figures = (
                _taken(manifest),
                str(header.timeline),
                str(header.shards),
                str(jobs),
                size(manifest.nbytes),
            )
        add(drawn, str(found.checkpoint), *figures, _state(found))
    return drawn


def _state(found: Found) -> Text:
    number = f", {plural(len(found.problems), 'problem')}" if found.problems else ""
    return Text(f"{found.state}{number}", style=_STYLES[found.state])


def _taken(manifest: Manifest) -> str:
    return manifest.created.replace("T", " ")


def _detail(manifest: Manifest) -> Iterator[RenderableType]:
    header = manifest.header
    heading = f"checkpoint {header.checkpoint}, taken {_taken(manifest)} by asyncps {manifest.version}"
    facts = (
        f"cluster {header.cluster}",
        f"timeline {header.timeline}",
        plural(header.shards, "shard"),
        plural(len(manifest.jobs), "job"),
        size(manifest.nbytes),
    )
    yield Text(printable(heading), style="bold")
    yield indented(Text(printable(", ".join(facts))))
    yield Text()
    for job in manifest.jobs:
        yield from _job(job)


def _job(job: SavedJob) -> Iterator[RenderableType]:
    yield Text(f"job {printable(job.name)}", style="bold")
    how = f"{togetherness(job.staleness)} (staleness {job.staleness:.0f})"
    numbers = size(sum(_nbytes(info) for info in job.tensors if info.spec.table is None))
    facts = f"{how}, step {count(job.clock)}, {plural(job.updates, 'update')}, {numbers} of dense parameters"
    yield indented(Text(facts))
    if job.tensors:
        yield Text()
        yield indented(_tensors(job))
    yield Text()


def _tensors(job: SavedJob) -> RenderableType:
    drawn = table("<tensor", "<dtype", "<shape", "<optimizer", ">size", ">shards")
    for info in job.tensors:
        optimizer, blocks = _optimizer(info.spec.optimizer), str(len(info.blocks))
        nbytes = "-" if info.spec.table else size(_nbytes(info))  # the manifest tells no numbers of rows
        add(drawn, info.name, info.spec.dtype, _shape(info), optimizer, nbytes, blocks)
    return drawn


def _shape(info: TensorInfo) -> str:
    if info.spec.table is not None:
        return f"rows x {info.spec.table.dim}"
    return " x ".join(map(str, info.spec.shape)) or "scalar"


def _optimizer(spec: OptimizerSpec) -> str:
    return " ".join(_words(spec) if spec.schedule is None else (*_words(spec), *_words(spec.schedule)))


def _words(spec: OptimizerSpec | ScheduleSpec) -> list[str]:
    return [spec.name, *(f"{setting.name}={setting.value:g}" for setting in spec.settings)]


def _nbytes(info: TensorInfo) -> int:
    return math.prod(info.spec.shape) * DTYPES[info.spec.dtype].itemsize


def _soundness(inspection: Inspection, newest: Found) -> Iterator[RenderableType]:
    """Say that the newest is sound, or else what is wrong with each that a server would pass over."""
    if newest.state == "sound":
        yield Text(f"sound: {plural(newest.files, 'file')}, every checksum right", style="green")
        return
    for found in reversed(inspection.checkpoints):
        if found.state == "damaged" and found.checkpoint > (inspection.usable or 0):
            yield from _damage(found)


def _damage(found: Found) -> Iterator[RenderableType]:
    yield Text(
        f"checkpoint {found.checkpoint} is damaged: {plural(len(found.problems), 'problem')}", style="red"
    )
    for problem in found.problems:
        yield indented(Text(printable(f"{problem.file}: {problem.message}")))
