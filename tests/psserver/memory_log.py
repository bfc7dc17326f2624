"""An update log in memory, which is durable when the test says so, and forgets the rest in a crash."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from protocol.errors import LogUnwritable
from psserver.durability.log import Batch
from psserver.durability.records import Key

Array = npt.NDArray[Any]


def as_written(plain: Any) -> Any:
    """What comes back of plain data in a record."""
    return msgpack.unpackb(msgpack.packb(plain), strict_map_key=False)


def as_json(plain: Any) -> Any:
    """What comes back of plain data in a checkpoint."""
    return json.loads(json.dumps(plain, allow_nan=False))


def kept(array: Array) -> Array:
    """A copy that nobody may write to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


class _Gathering:
    def __init__(self, segment: int) -> None:
        self.segment = segment
        self.events: list[Any] = []
        self.arrays: dict[Key, tuple[Any, Array, Array]] = {}  # the last is what it was when it was appended
        self.docs: dict[Key, Callable[[], Any]] = {}
        self.closed_docs: dict[Key, Any] = {}
        self.then: list[Callable[[], None]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.events or self.arrays or self.docs or self.then)

    def close_docs(self) -> None:
        self.closed_docs |= {key: as_written(document()) for key, document in self.docs.items()}
        self.docs = {}

    def batch(self) -> Batch:
        for key, (_, array, then) in self.arrays.items():
            np.testing.assert_array_equal(array, then, f"{key} has changed before it was durable")
        arrays = {key: (info, kept(array)) for key, (info, array, _) in self.arrays.items()}
        return Batch(self.events, self.closed_docs, arrays)


class MemoryLog:
    """What a shard uses of an ``UpdateLog``.

    Args:
        former: the log of which this one is the continuation after a crash.

    Attributes:
        durable: the batches that are, with their segments.
    """

    def __init__(self, former: "MemoryLog | None" = None) -> None:
        self.durable: list[tuple[int, Batch]] = [] if former is None else list(former.durable)
        self.problem: LogUnwritable | None = None
        self._gathering: _Gathering = _Gathering(1 if former is None else former._gathering.segment + 1)
        self._closed: list[_Gathering] = []

    def append(
        self,
        events: Iterable[Any] = (),
        *,
        arrays: Mapping[Key, tuple[Any, Array]] | None = None,
        docs: Mapping[Key, Callable[[], Any]] | None = None,
        then: Callable[[], None] | None = None,
        sync: bool = False,
    ) -> None:
        del sync  # what is durable here is synced
        self._gathering.events += [as_written(event) for event in events]
        for key, (info, array) in (arrays or {}).items():
            assert array.ndim == 1
            assert array.flags.c_contiguous
            self._gathering.arrays[key] = (as_written(info), array, array.copy())
        self._gathering.docs.update(docs or {})
        if then is not None:
            self._gathering.then.append(then)

    def when_durable(self, then: Callable[[], None]) -> None:
        if self._closed or self._gathering.has_work:
            self.append(then=then)
        else:
            then()

    def rotate(self) -> int:
        self._gathering.close_docs()
        self._closed.append(self._gathering)
        self._gathering = _Gathering(self._gathering.segment + 1)
        return self._gathering.segment

    @property
    def is_cut_off(self) -> bool:
        """Whether something before the open segment is not durable."""
        return bool(self._closed)

    def write(self) -> list[Callable[[], None]]:
        """Make all durable; return what is to be called for that."""
        self._gathering.close_docs()
        written, self._closed = [*self._closed, self._gathering], []
        self._gathering = _Gathering(self._gathering.segment)
        self.durable += [(one.segment, one.batch()) for one in written]
        return [then for one in written for then in one.then]

    def commit(self) -> None:
        """Make all durable, and say so."""
        for then in self.write():
            then()

    def since(self, segment: int) -> list[Batch]:
        """The durable batches of a segment and those after it."""
        return [batch for number, batch in self.durable if number >= segment]
