import errno
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import CheckpointUnusable
from protocol.tensors import DTYPES
from psserver.durability import tensors_file
from psserver.durability.checkpoint import (
    Header,
    SavedArray,
    Wanted,
    load_arrays,
    load_shard,
    manifest_from_bytes,
    manifest_to_bytes,
    newest_usable,
    publish_manifest,
    read_coordinator_state,
    read_manifest,
    read_shard_state,
    save_coordinator,
    save_shard,
    verify,
)
from psserver.durability.failpoints import configure
from psserver.durability.storage import LocalStorage, Storage
from tests.psserver.durability.made_up import (
    TENSORS,
    Array,
    Tensor,
    arrays_on,
    blocks_of,
    manifest_of,
    values_of,
    write,
)

FILES: Final = (
    "manifest.json",
    "coordinator.json",
    *(f"shard-{shard}.{kind}" for shard in range(3) for kind in ("json", "safetensors")),
)
ALL_DTYPES: Final = tuple(Tensor("j", name, name, (3, 5), ("m",)) for name in DTYPES)


def assert_same(found: Array, expected: Array) -> None:
    """Compare bytes, for a NaN is not equal to itself."""
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def named(problems: list[CheckpointUnusable]) -> set[str]:
    return {problem.value for problem in problems}


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


@pytest.fixture(params=[64, 1 << 20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write in pieces so small that each array has some, and so large that it has one."""
    monkeypatch.setattr(tensors_file, "_PIECE", request.param)


# --- round trips


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("tensors", [(), TENSORS[:1], TENSORS, ALL_DTYPES])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_what_is_loaded_is_what_was_saved(
    storage: LocalStorage, tensors: tuple[Tensor, ...], shards: int
) -> None:
    manifest = write(storage, 7, tensors, shards=shards)
    assert read_manifest(storage, 7) == manifest
    assert manifest_from_bytes(manifest_to_bytes(manifest)) == manifest
    assert verify(storage, 7) == []
    assert read_coordinator_state(storage, 7, manifest=manifest).state == {"leases": list(range(7, 30))}
    for shard in range(shards):
        state, arrays = load_shard(storage, 7, shard, manifest=manifest)
        assert state == read_shard_state(storage, 7, shard)
        assert state.state == {"shard": shard, "updates": [1, 2.5, None, "x"]}
        saved = arrays_on(shard, tensors, shards, seed=7)
        assert {one.key for one in arrays} == {one.key for one in saved}
        for one in arrays:
            (expected,) = [other for other in saved if other.key == one.key]
            assert_same(cast(Array, one.values), cast(Array, expected.values))
            assert replace(one, values=expected.values) == expected


@pytest.mark.parametrize("shards", [1, 3])
def test_the_safetensors_package_opens_the_arrays(storage: LocalStorage, shards: int) -> None:
    write(storage, 1, ALL_DTYPES, shards=shards)
    for shard in range(shards):
        path = f"{storage.root}/checkpoint-00000001/shard-{shard}.safetensors"
        found = safetensors.numpy.load_file(path)
        saved = arrays_on(shard, ALL_DTYPES, shards, seed=1)
        assert found.keys() == {one.key for one in saved}
        with safetensors.safe_open(path, framework="numpy") as opened:
            about = opened.metadata()
        for one in saved:
            assert_same(found[one.key].reshape(-1), cast(Array, one.values))
            assert found[one.key].shape == ((3, 5) if shards == 1 else (one.values.size,))
            assert about[one.key] == f"{one.start}:{one.stop} of [3, 5]"
        assert (about["format"], about["shard"]) == ("asyncps 1", f"{shard} of {shards}")


def test_arrays_are_aligned(storage: LocalStorage) -> None:
    write(storage, 1, ALL_DTYPES, shards=2)
    entries = read_shard_state(storage, 1, 0).arrays
    assert entries[0].offset % 64 == 0
    assert all(entry.offset % DTYPES[entry.dtype].itemsize == 0 for entry in entries)


def test_checksums_are_those_that_xxhsum_tells(storage: LocalStorage) -> None:
    manifest = write(storage, 1)
    directory = Path(storage.root) / "checkpoint-00000001"
    assert {file.name for file in manifest.files} == set(FILES) - {"manifest.json"}
    for file in manifest.files:
        data = (directory / file.name).read_bytes()
        assert (file.bytes, file.checksum) == (len(data), xxhash.xxh3_64_hexdigest(data))
    assert manifest.nbytes == sum(file.bytes for file in manifest.files)


# --- other numbers of shards


def wanted_of(tensors: tuple[Tensor, ...], shards: int) -> list[list[Wanted]]:
    """Return what each of so many shards would load."""
    return [
        [
            Wanted(tensor.job, tensor.name, block.start, block.stop, slot)
            for tensor in tensors
            for block in blocks_of(tensor, shards)
            if block.shard == shard
            for slot in ("", *tensor.slots)
        ]
        for shard in range(shards)
    ]


def assert_loaded(found: dict[Wanted, Array], tensors: tuple[Tensor, ...], seed: int) -> None:
    by_name = {(tensor.job, tensor.name): tensor for tensor in tensors}
    for one, values in found.items():
        whole = values_of(by_name[one.job, one.name], one.slot, seed)
        assert_same(values, whole[one.start : one.stop])


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("before", [1, 2, 3, 5])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_as_many_shards_as_one_likes_load_a_checkpoint(
    storage: LocalStorage, before: int, after: int
) -> None:
    tensors = (*TENSORS, *ALL_DTYPES)
    write(storage, 4, tensors, shards=before)
    for wanted in wanted_of(tensors, after):
        found = load_arrays(storage, 4, wanted, before)
        assert found.keys() == set(wanted)
        assert_loaded(found, tensors, seed=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    """Checkpoints 1 and 2, to be read only, or mended after each test."""
    storage = LocalStorage(tmp_path_factory.mktemp("written"))
    for number in (1, 2):
        write(storage, number)
    return storage


@settings(max_examples=60)
@given(data=st.data())
def test_any_ranges_are_put_together(written: LocalStorage, data: st.DataObject) -> None:
    ranges = st.sets(st.integers(0, 91), min_size=2, max_size=2).map(sorted)
    slots = st.sampled_from(["", "momentum"])
    wanted = {
        Wanted("digits", "w", start, stop, slot)
        for (start, stop), slot in data.draw(st.lists(st.tuples(ranges, slots), max_size=5))
    }
    found = load_arrays(written, 1, wanted, 3)
    assert found.keys() == wanted
    assert_loaded(found, TENSORS, seed=1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted("digits", "w", 0, 92), "do not have digits/w from 91 on"),
        (Wanted("digits", "w", 91, 92), "do not have digits/w from 91 on"),
        (Wanted("digits", "nothing", 0, 1), "do not have digits/nothing from 0 on"),
        (Wanted("nobody", "w", 0, 1), "do not have nobody/w from 0 on"),
        (Wanted("digits", "w", 0, 1, "velocity"), "do not have digits/w/velocity from 0 on"),
    ],
)
def test_what_nobody_saved(written: LocalStorage, wanted: Wanted, message: str) -> None:
    with pytest.raises(CheckpointUnusable, match=message) as raised:
        load_arrays(written, 1, [wanted], 3)
    assert raised.value.value == "checkpoint-00000001"


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (3, 3), (5, 3)])
def test_what_is_no_part_is_a_mistake_of_the_caller(written: LocalStorage, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="is no part of a tensor"):
        load_arrays(written, 1, [Wanted("digits", "w", start, stop)], 3)


@pytest.mark.parametrize(
    ("blocks", "dtype", "message"),
    [
        ([(0, 60), (50, 91)], "float32", "have digits/w at 50 twice or never"),
        ([(0, 91), (0, 91)], "float32", "have digits/w at 0 twice or never"),
        ([(0, 30), (40, 91)], "float32", "have digits/w at 30 twice or never"),
        ([(1, 50), (50, 91)], "float32", "have digits/w at 0 twice or never"),
        ([(0, 50), (50, 90)], "float32", "do not have digits/w from 90 on"),
        ([(0, 50), (50, 91)], "int32", "in different dtypes or shapes"),
    ],
)
def test_parts_that_do_not_make_up_a_tensor(
    storage: LocalStorage, blocks: list[tuple[int, int]], dtype: str, message: str
) -> None:
    for shard, (start, stop) in enumerate(blocks):
        kind = dtype if shard else "float32"
        values = np.zeros(stop - start, DTYPES[kind])
        array = SavedArray("digits", "w", "", kind, (13, 7), start, stop, values)
        save_shard(storage, Header(1, 2, "c", 1), shard, [array], {})
    with pytest.raises(CheckpointUnusable, match=message):
        load_arrays(storage, 1, [Wanted("digits", "w", 0, 91)], 2)


def test_only_what_is_wanted_is_read(written: LocalStorage) -> None:
    directory = Path(written.root) / "checkpoint-00000001"
    with (
        changed(directory / "shard-0.safetensors", flip(-1)),  # in another array
        changed(directory / "shard-2.safetensors", lambda _: None),
    ):
        found = load_arrays(written, 1, [Wanted("digits", "w", 20, 50)], 3)
        with pytest.raises(CheckpointUnusable, match="it is missing"):
            load_arrays(written, 1, [Wanted("digits", "w", 20, 70)], 3)
    assert_loaded(found, TENSORS, seed=1)


def test_on_a_disk_of_its_own_a_shard_reads_its_own_files(written: LocalStorage) -> None:
    (w,) = [entry for entry in read_shard_state(written, 1, 1).arrays if entry.key == "digits/w"]
    own = Wanted("digits", "w", w.start, w.stop)
    directory = Path(written.root) / "checkpoint-00000001"
    with ExitStack() as stack:
        for other in (0, 2):
            stack.enter_context(changed(directory / f"shard-{other}.json", lambda _: None))
        assert_loaded(load_arrays(written, 1, [own], 3, shard=1), TENSORS, seed=1)
        with pytest.raises(CheckpointUnusable, match="it is missing") as raised:
            load_arrays(written, 1, [Wanted("digits", "w", 0, w.stop)], 3, shard=1)
        assert raised.value.value == "checkpoint-00000001/shard-0.json"
        with pytest.raises(CheckpointUnusable, match="it is missing"):
            load_arrays(written, 1, [own], 3, shard=2)


# --- damage


class Claiming(LocalStorage):
    """A storage that says of some files that they have another size."""

    def __init__(self, storage: LocalStorage, sizes: dict[str, int]) -> None:
        super().__init__(storage.root)
        self._sizes = sizes

    def size(self, path: str) -> int:
        return self._sizes.get(path.rpartition("/")[2]) or super().size(path)


class changed:  # noqa: N801 (reads as what it does)
    """A file that is another for a while."""

    def __init__(self, path: Path, change: Callable[[bytes], bytes | None]) -> None:
        self.path, self.before = path, path.read_bytes()
        self.after = change(self.before)

    def __enter__(self) -> None:
        assert self.after != self.before
        if self.after is None:
            self.path.unlink()
        else:
            self.path.write_bytes(self.after)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.before)


def flip(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        return bytes(changed)

    return change


def cut(length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:length]


def assert_noticed(storage: LocalStorage, *names: str) -> None:
    """Checkpoint 2 is damaged in these files, and 1 is the newest that is usable."""
    problems = verify(storage, 2)
    assert {f"checkpoint-00000002/{name}" for name in names} <= named(problems)
    told: list[str] = []
    newest = newest_usable(storage, report=told.append)
    assert newest is not None
    assert newest.header.checkpoint == 1
    assert len(told) == len(problems)
    assert all(any(name in line for line in told) for name in names)


def regions(name: str) -> list[int]:
    """Return bytes of a file of checkpoint 2 of which each is in another place of its format."""
    files = FILES_OF_2
    data = files[name]
    if not name.endswith("safetensors"):
        # Each key, and each value's first byte; the braces at both ends, the checksum, the newline.
        marks = [m.start() + offset for m in re.finditer(rb'"[a-z]+":', data) for offset in (1, len(m[0]))]
        return sorted({0, *marks[:: max(1, len(marks) // 24)], len(data) - 20, len(data) - 2, len(data) - 1})
    start = 8 + int.from_bytes(data[:8], "little")
    text_end = data.rindex(b"}", 0, start)
    padding = [text_end + 1, start - 1] if text_end + 1 < start else []
    entries = json.loads(files[name.replace("safetensors", "json")])["arrays"]
    inside = [one["offset"] + delta for one in entries for delta in (0, 1, 3) if delta < one["bytes"]]
    return sorted({*range(8), 8, 9, 20, start // 2, text_end, *padding, *inside, len(data) - 1})


def _files_of_2() -> dict[str, bytes]:
    """Return the files of checkpoint 2, the same each time."""
    with tempfile.TemporaryDirectory() as directory:
        write(LocalStorage(directory), 2)
        return {name: (Path(directory) / "checkpoint-00000002" / name).read_bytes() for name in FILES}


FILES_OF_2: Final = _files_of_2()
FLIPS: Final = [(name, at) for name in FILES for at in regions(name)]
CUTS: Final = [
    (name, length)
    for name in FILES
    for size in [len(FILES_OF_2[name])]
    for length in sorted({0, 1, 7, 8, 9, size // 3, size // 2, size - 32, size - 2, size - 1})
]


def test_there_are_enough_cases() -> None:
    assert len(FLIPS) + len(CUTS) >= 200


@pytest.mark.parametrize(("name", "at"), FLIPS)
def test_a_flipped_bit_is_noticed(written: LocalStorage, name: str, at: int) -> None:
    path = Path(written.root) / "checkpoint-00000002" / name
    assert path.read_bytes() == FILES_OF_2[name]
    with changed(path, flip(at, bit=at % 8)):
        assert_noticed(written, name)
        assert len(verify(written, 2)) == 1
    assert verify(written, 2) == []


@pytest.mark.parametrize(("name", "length"), CUTS)
def test_a_truncation_is_noticed(written: LocalStorage, name: str, length: int) -> None:
    with changed(Path(written.root) / "checkpoint-00000002" / name, cut(length)):
        assert_noticed(written, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [b"\0", b"\n", bytes(4096)])
def test_more_bytes_are_noticed(written: LocalStorage, name: str, more: bytes) -> None:
    with changed(Path(written.root) / "checkpoint-00000002" / name, lambda data: data + more):
        assert_noticed(written, name)


@pytest.mark.parametrize("name", FILES)
def test_zeros_instead_of_a_file_are_noticed(written: LocalStorage, name: str) -> None:
    with changed(Path(written.root) / "checkpoint-00000002" / name, lambda data: bytes(len(data))):
        assert_noticed(written, name)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_noticed(written: LocalStorage, name: str) -> None:
    with changed(Path(written.root) / "checkpoint-00000002" / name, lambda _: None):
        assert_noticed(written, name)


def test_without_its_manifest_a_checkpoint_is_incomplete(written: LocalStorage) -> None:
    told: list[str] = []
    with changed(Path(written.root) / "checkpoint-00000002/manifest.json", lambda _: None):
        newest = newest_usable(written, report=told.append)
    assert newest is not None
    assert newest.header.checkpoint == 1
    assert told == ["checkpoint-00000002 is skipped: it was not completed, it has no manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_the_file_of_another_checkpoint_is_noticed(written: LocalStorage, name: str) -> None:
    other = (Path(written.root) / "checkpoint-00000001" / name).read_bytes()
    with changed(Path(written.root) / "checkpoint-00000002" / name, lambda _: other):
        assert_noticed(written, name)


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 2)])
def test_files_that_shards_have_swapped_are_noticed(
    written: LocalStorage, kind: str, one: int, other: int
) -> None:
    directory = Path(written.root) / "checkpoint-00000002"
    paths = [directory / f"shard-{shard}.{kind}" for shard in (one, other)]
    first, second = (path.read_bytes() for path in paths)
    with changed(paths[0], lambda _: second), changed(paths[1], lambda _: first):
        assert_noticed(written, *(path.name for path in paths))


def test_a_directory_instead_of_a_file_is_noticed(storage: LocalStorage) -> None:
    for number in (1, 2):
        write(storage, number)
    for name in ("shard-1.safetensors", "shard-2.json"):
        (Path(storage.root) / "checkpoint-00000002" / name).unlink()
        (Path(storage.root) / "checkpoint-00000002" / name).mkdir()
    assert_noticed(storage, "shard-1.safetensors", "shard-2.json")


def test_a_checkpoint_under_another_number_is_noticed(storage: LocalStorage) -> None:
    write(storage, 1)
    shutil.copytree(f"{storage.root}/checkpoint-00000001", f"{storage.root}/checkpoint-00000002")
    assert_noticed(storage, "manifest.json")
    with pytest.raises(CheckpointUnusable, match="it is of checkpoint 1"):
        read_coordinator_state(storage, 2)
    with pytest.raises(CheckpointUnusable, match="it is of checkpoint 1"):
        read_shard_state(storage, 2, 0)


def test_every_byte_of_a_checkpoint_is_checked(storage: LocalStorage) -> None:
    write(storage, 1, TENSORS[2:], shards=1)
    rng, directory = random.Random(1), Path(storage.root) / "checkpoint-00000001"
    seen = 0
    for path in sorted(directory.iterdir()):
        for at in range(path.stat().st_size):
            with changed(path, flip(at, rng.randrange(8))):
                assert f"checkpoint-00000001/{path.name}" in named(verify(storage, 1))
            seen += 1
    assert verify(storage, 1) == []
    assert seen > 1000


def test_all_problems_are_told_and_where_they_are(written: LocalStorage) -> None:
    directory = Path(written.root) / "checkpoint-00000002"
    entries = {entry.key: entry for entry in read_shard_state(written, 2, 1).arrays}
    w, momentum = entries["digits/w"], entries["digits/w/momentum"]
    path = directory / "shard-1.safetensors"
    with (
        changed(path, flip(w.offset + 3)),
        changed(path, flip(momentum.offset)),
        changed(path, flip(20)),
        changed(directory / "coordinator.json", cut(10)),
        changed(directory / "shard-0.safetensors", lambda _: None),
    ):
        problems = [str(problem) for problem in verify(written, 2)]
    assert len(problems) == 5
    for part in (
        f"digits/w, {w.bytes} bytes at offset {w.offset}, is damaged",
        f"digits/w/momentum, {momentum.bytes} bytes at offset {momentum.offset}, is damaged",
        "file=checkpoint-00000002/shard-0.safetensors: it is missing",
        "file=checkpoint-00000002/coordinator.json: it has 10 bytes",
        "file=checkpoint-00000002/shard-1.safetensors: ",
    ):
        assert any(part in problem for problem in problems)


def test_tensors_are_checked_without_their_state(written: LocalStorage) -> None:
    directory = Path(written.root) / "checkpoint-00000002"
    with changed(directory / "shard-1.json", cut(10)):
        assert named(verify(written, 2)) == {"checkpoint-00000002/shard-1.json"}
        with changed(directory / "shard-1.safetensors", flip(700)):
            both = {f"checkpoint-00000002/shard-1.{kind}" for kind in ("json", "safetensors")}
            assert named(verify(written, 2)) == both


def test_a_server_with_a_disk_of_its_own_checks_what_is_there(storage: LocalStorage) -> None:
    write(storage, 1)
    for name in ("shard-0.json", "shard-0.safetensors", "coordinator.json", "shard-2.json"):
        storage.remove(f"checkpoint-00000001/{name}")
    assert verify(storage, 1, shards={1}) == []
    newest = newest_usable(storage, report=pytest.fail, shards={1})
    assert newest == read_manifest(storage, 1)
    assert len(verify(storage, 1, shards={0})) == 3
    assert len(verify(storage, 1)) == 4
    (problem,) = verify(storage, 1, shards={3})
    assert "it is of 3, there is no shard 3" in problem.message


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_nothing_damaged_is_loaded(written: LocalStorage, kind: str) -> None:
    path = Path(written.root) / f"checkpoint-00000002/shard-1.{kind}"
    (w,) = [entry for entry in read_shard_state(written, 2, 1).arrays if entry.key == "digits/w"]
    with changed(path, flip(w.offset)):
        for load in (
            lambda: load_shard(written, 2, 1),
            lambda: load_arrays(written, 2, [Wanted("digits", "w", 40, 41)], 3),
        ):
            with pytest.raises(CheckpointUnusable) as raised:
                load()
            assert raised.value.value == f"checkpoint-00000002/shard-1.{kind}"


def test_progress_is_told(written: LocalStorage) -> None:
    read: list[int] = []
    assert verify(written, 1, progress=read.append) == []
    entries = [entry for shard in range(3) for entry in read_shard_state(written, 1, shard).arrays]
    assert sum(read) == sum(entry.bytes for entry in entries)


# --- the newest that is usable


def test_of_no_checkpoint_none_is_usable(storage: LocalStorage) -> None:
    assert newest_usable(storage, report=pytest.fail) is None
    storage.create("checkpoint-00000001/shard-0.json").close()
    told: list[str] = []
    assert newest_usable(storage, report=told.append) is None
    assert len(told) == 1


def test_if_all_are_damaged_it_is_an_error_and_all_is_told(storage: LocalStorage) -> None:
    for number in (1, 2):
        write(storage, number)
        storage.remove(f"checkpoint-{number:08d}/shard-0.json")
    told: list[str] = []
    with pytest.raises(CheckpointUnusable, match="the 2 complete checkpoints there are all damaged"):
        newest_usable(storage, report=told.append)
    assert [line[:19] for line in told] == ["checkpoint-00000002", "checkpoint-00000001"]


# --- storages that fail


class Troubled:
    """A storage of which some calls fail."""

    def __init__(self, storage: Storage, trouble: dict[str, Exception]) -> None:
        self.root = storage.root
        self._storage, self._trouble = storage, trouble

    def __getattr__(self, name: str) -> Any:
        if name in self._trouble:
            return self._fail(name)
        if name == "open" and "read_into" in self._trouble:
            return lambda path: self
        return getattr(self._storage, name)

    def _fail(self, name: str) -> Callable[..., None]:
        def fail(*arguments: object) -> None:
            del arguments
            raise self._trouble[name]

        return fail

    def close(self) -> None:
        """Of what is read."""


def from_a_driver(number: int) -> OSError:
    error = OSError(number, "the driver had trouble")
    error.__cause__ = RuntimeError("connection reset")
    return error


@pytest.mark.parametrize("call", ["size", "open", "read_into", "names"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.EACCES, "no"),
        OSError(errno.EMFILE, "no"),
        from_a_driver(errno.EIO),
    ],
)
def test_a_storage_that_cannot_be_read_now_is_not_a_damaged_checkpoint(
    written: LocalStorage, call: str, error: OSError
) -> None:
    troubled: Any = Troubled(written, {call: error})
    with pytest.raises(OSError, match=re.escape(str(error))):
        newest_usable(troubled, report=pytest.fail)


@pytest.mark.parametrize("call", ["size", "open", "read_into"])
def test_a_file_that_the_disk_cannot_read_is_damaged(written: LocalStorage, call: str) -> None:
    troubled: Any = Troubled(written, {call: OSError(errno.EIO, "Input/output error")})
    (problem,) = verify(troubled, 1)
    assert problem.message == "it cannot be read: Input/output error"
    with pytest.raises(CheckpointUnusable, match="all damaged"):
        newest_usable(troubled, report=lambda _: None)


def test_sizes_are_checked_before_memory_is_taken(written: LocalStorage) -> None:
    (problem,) = verify(Claiming(written, {"manifest.json": 1 << 60}), 1)
    assert problem.message.startswith(f"checkpoint-00000001/manifest.json has {1 << 60} bytes")


def test_a_file_that_gets_shorter_while_it_is_read(written: LocalStorage) -> None:
    path = Path(written.root) / "checkpoint-00000002/shard-1.safetensors"

    stale = Claiming(written, {path.name: len(FILES_OF_2[path.name])})
    with (
        changed(path, cut(700)),
        pytest.raises(CheckpointUnusable, match="offset 700: it ends there"),
    ):
        load_shard(stale, 2, 1)


# --- files that somebody else has written


def sealed(plain: dict[str, Any]) -> bytes:
    plain = {key: value for key, value in plain.items() if key != "checksum"}
    text = json.dumps(plain, separators=(",", ":"))
    return f'{text[:-1]},"checksum":"{xxhash.xxh3_64_hexdigest(text.encode())}"}}\n'.encode()


def put(plain: Any, path: str, value: Any) -> None:
    """Change what is at ``a.0.b``."""
    *parents, last = path.split(".")
    for key in parents:
        plain = plain[int(key) if isinstance(plain, list) else key]
    plain[int(last) if isinstance(plain, list) else last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("header.shards", 0, "shards=0: expected 1 to 65536 shards"),
        ("header.shards", 1 << 40, "expected 1 to 65536 shards"),
        ("header.shards", 2, "a checkpoint of 2 shards has other files"),
        ("header.shards", 4, "a checkpoint of 4 shards has other files"),
        ("header.checkpoint", 0, "checkpoint=0: expected 1 or more"),
        ("header.checkpoint", 3, "it is of checkpoint 3"),
        ("header.cluster", "\x1b[2J", "printable"),
        ("header.cluster", "x" * 201, "at most 200"),
        ("header.timeline", "2", "timeline=2: expected an integer"),
        ("created", "yesterday", "expected a time"),
        ("created", "2026-05-01T12:00:00", "expected a time"),
        ("version", 1, "version=1: expected text"),
        ("jobs", {}, "jobs={}: expected an array"),
        ("jobs.0.name", "..", "take printable"),
        ("jobs.0.name", "other", "job other comes twice"),
        ("jobs.0.staleness", -1, "field staleness of job digits: it is -1"),
        ("jobs.0.clock", None, "clock=None: expected an integer"),
        ("jobs.0.plan", 1, "plan=1: expected text"),
        ("jobs.0.tensors.0.name", "b", "tensor of job digits b comes twice"),
        ("jobs.0.tensors.0.spec.dtype", "O", "dtype=O: a dtype is one of"),
        ("jobs.0.tensors.0.spec.shape", [0, 7], "every dimension is at least 1"),
        ("jobs.0.tensors.0.spec.shape", [1 << 62, 1 << 62], "at most"),
        ("jobs.0.tensors.0.spec.shape", [13, 8], "field blocks of digits/w: they end at 91"),
        ("jobs.0.tensors.0.blocks", [], "field blocks of digits/w: they end at 0"),
        ("jobs.0.tensors.0.blocks.1.start", 31, "they do not make up the tensor"),
        ("jobs.0.tensors.0.blocks.1.stop", 30, "they do not make up the tensor"),
        ("jobs.0.tensors.0.blocks.1.shard", 3, "they do not make up the tensor"),
        ("jobs.0.tensors.0.blocks.1.shard", 0, "they do not make up the tensor"),
        ("jobs.0.tensors.0.spec.optimizer.settings", {}, "settings={}: expected an array"),
        ("files.0.name", "../../etc/passwd", "has other files"),
        ("files.0.name", "shard-0.json", "has other files"),
        ("files.0.bytes", -1, "bytes=-1: expected an integer"),
        ("files.0.checksum", "x", "16 hexadecimal digits"),
    ],
)
def test_a_manifest_that_no_cluster_writes(
    written: LocalStorage, path: str, value: Any, message: str
) -> None:
    plain = json.loads(FILES_OF_2["manifest.json"])
    put(plain, path, value)
    with changed(Path(written.root) / "checkpoint-00000002/manifest.json", lambda _: sealed(plain)):
        with pytest.raises(CheckpointUnusable, match=re.escape(message)) as raised:
            read_manifest(written, 2)
        assert raised.value.value == "checkpoint-00000002/manifest.json"
        assert_noticed(written, "manifest.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("shard", 0, "it is of shard 0"),
        ("header.shards", 1, "field shard: it is 1 of 1"),
        ("header.checkpoint", 1, "it is of checkpoint 1"),
        ("arrays.1.job", "", "take 1 to 128 characters"),
        ("arrays.1.slot", "a/b", "take printable"),
        ("arrays.1.dtype", "float128", "a dtype is one of"),
        ("arrays.1.shape", [1] * 9, "at most 8 dimensions"),
        ("arrays.1.shape", [1], "30:60 is no part of shape (1,)"),
        ("arrays.1.start", 60, "60:60 is no part"),
        ("arrays.1.stop", 92, "30:92 is no part"),
        ("arrays.1.stop", 59, "120 bytes for 29 float32"),
        ("arrays.1.bytes", 1 << 62, "bytes for 30 float32"),
        ("arrays.1.offset", 0, "the one before ends at"),
        ("arrays.2.offset", 1 << 62, "the one before ends at"),
        ("arrays.1.checksum", "0" * 15, "16 hexadecimal digits"),
        ("arrays.2.slot", "", "array digits/w comes twice"),
        ("arrays", [], "its data begin at"),
        ("file.name", "shard-0.safetensors", "field file: it names shard-0.safetensors"),
        ("file.name", "../x", "field file: it names ../x"),
        ("file.bytes", 1 << 62, "the arrays end at"),
        ("file.checksum", "x", "16 hexadecimal digits"),
        ("state", None, "expected an object"),
    ],
)
def test_a_state_that_no_shard_writes(written: LocalStorage, path: str, value: Any, message: str) -> None:
    plain = json.loads(FILES_OF_2["shard-1.json"])
    if path == "arrays":  # as if the header filled the file, which is more than a header may
        plain["file"]["bytes"] = 200_000_000
    put(plain, path, value)
    sizes = {"shard-1.safetensors": plain["file"]["bytes"]} if path == "arrays" else {}
    with changed(Path(written.root) / "checkpoint-00000002/shard-1.json", lambda _: sealed(plain)):
        assert_noticed(written, "shard-1.json")
        with pytest.raises(CheckpointUnusable, match=re.escape(message)) as raised:
            load_shard(Claiming(written, sizes), 2, 1)
    assert raised.value.value.startswith("checkpoint-00000002/shard-1.")


@pytest.mark.parametrize("is_there", [False, True])
def test_an_array_larger_than_memory(written: LocalStorage, is_there: bool) -> None:
    """Memory is not taken on the word of a document; nor is there any, if there really is such a file."""
    plain = json.loads(FILES_OF_2["shard-1.json"])
    elements = 1 << 48
    entry = plain["arrays"][1] | {"shape": [elements], "start": 0, "stop": elements, "bytes": elements * 4}
    plain["arrays"] = [entry]
    plain["file"]["bytes"] = entry["offset"] + entry["bytes"]
    storage = Claiming(written, {"shard-1.safetensors": plain["file"]["bytes"]} if is_there else {})
    directory = Path(written.root) / "checkpoint-00000002"
    with (
        changed(directory / "shard-0.json", lambda _: sealed(_emptied("shard-0.json"))),
        changed(directory / "shard-1.json", lambda _: sealed(plain)),
        changed(directory / "shard-2.json", lambda _: sealed(_emptied("shard-2.json"))),
        pytest.raises(CheckpointUnusable, match="not enough memory" if is_there else "bytes, not"),
    ):
        load_arrays(storage, 2, [Wanted("digits", "w", 0, elements)], 3)


def _emptied(name: str) -> dict[str, Any]:
    """Return a shard's state without arrays."""
    return {**json.loads(FILES_OF_2[name]), "arrays": []}


def rewrite(storage: LocalStorage, number: int, name: str, data: bytes, manifest: dict[str, Any]) -> None:
    """Replace a file, and have the manifest say that this is as it must be."""
    (Path(storage.root) / f"checkpoint-{number:08d}" / name).write_bytes(data)
    (file,) = [file for file in manifest["files"] if file["name"] == name]
    file |= {"bytes": len(data), "checksum": xxhash.xxh3_64_hexdigest(data)}
    path = Path(storage.root) / f"checkpoint-{number:08d}/manifest.json"
    path.write_bytes(sealed(manifest))


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("shard-1.json", "header.cluster", "other", "field header: it is not the manifest's"),
        ("shard-1.json", "header.timeline", 9, "field header: it is not the manifest's"),
        ("coordinator.json", "header.timeline", 9, "field header: it is not the manifest's"),
        ("shard-1.json", "file.checksum", "0" * 16, "field file: the manifest says otherwise"),
        ("shard-1.json", "arrays.1.name", "v", "field arrays: digits/w from 30 to 60 is not there"),
        ("shard-1.json", "arrays.1.slot", "v", "field arrays: digits/w from 30 to 60 is not there"),
        ("shard-1.json", "arrays.1.dtype", "int32", "field arrays: digits/w from 30 to 60 is not there"),
        ("shard-1.json", "arrays.1.shape", [91], "field arrays: digits/w from 30 to 60 is not there"),
    ],
)
def test_files_that_do_not_agree_although_each_is_right(
    storage: LocalStorage, name: str, path: str, value: Any, message: str
) -> None:
    for number in (1, 2):
        write(storage, number)
    plain = json.loads((Path(storage.root) / "checkpoint-00000002" / name).read_bytes())
    manifest = json.loads((Path(storage.root) / "checkpoint-00000002/manifest.json").read_bytes())
    put(plain, path, value)
    rewrite(storage, 2, name, sealed(plain), manifest)
    (problem,) = verify(storage, 2)
    assert (problem.value, problem.message) == (f"checkpoint-00000002/{name}", message)
    assert_noticed(storage, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b'"F32"', b'"I32"', 1), "its header has other arrays"),
        (lambda data: data.replace(b'"digits/b"', b'"digits/c"'), "its header has other arrays"),
        (lambda data: bytes([data[0] - 1]) + data[1:], "offset 0: a header of 503 bytes before data at 512"),
        (lambda data: bytes([data[0] + 1]) + data[1:], "offset 0: a header of 505 bytes before data at 512"),
        (lambda data: b"\xff" * 8 + data[8:], f"offset 0: a header of {(1 << 64) - 1} bytes in a file of"),
        (lambda data: data[:8] + b"[" + data[9:], "offset 8: the header is no JSON"),
    ],
)
def test_a_header_of_tensors_that_is_wrong_although_all_checksums_are_right(
    storage: LocalStorage, change: Callable[[bytes], bytes], message: str
) -> None:
    for number in (1, 2):
        write(storage, number)
    directory = Path(storage.root) / "checkpoint-00000002"
    data = change((directory / "shard-1.safetensors").read_bytes())
    manifest = json.loads((directory / "manifest.json").read_bytes())
    rewrite(storage, 2, "shard-1.safetensors", data, manifest)
    plain = json.loads((directory / "shard-1.json").read_bytes())
    plain["file"]["checksum"] = xxhash.xxh3_64_hexdigest(data)
    rewrite(storage, 2, "shard-1.json", sealed(plain), manifest)
    (problem,) = verify(storage, 2)
    assert message in problem.message
    assert_noticed(storage, "shard-1.safetensors")


def leaves(plain: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield where everything in a document is."""
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in inner:
        yield ".".join((*path, str(key)))
        yield from leaves(value, (*path, str(key)))


ANYTHING: Final = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "inf", "w", "float64", "shard-1.json", [], {}, [1], [[]], {"a": 1}])
)


@settings(max_examples=200)
@given(data=st.data())
def test_whatever_a_document_says_it_is_read_or_refused(written: LocalStorage, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "coordinator.json", "shard-1.json"]))
    plain = json.loads(FILES_OF_2[name])
    for _ in range(data.draw(st.integers(1, 2))):
        put(plain, data.draw(st.sampled_from(list(leaves(plain)))), data.draw(ANYTHING))
    path = Path(written.root) / "checkpoint-00000002" / name
    if sealed(plain) == FILES_OF_2[name]:
        return
    with changed(path, lambda _: sealed(plain)):
        if name == "manifest.json":  # that is where it is said what is right
            assert newest_usable(written, report=lambda _: None) is not None
        else:
            assert_noticed(written, name)
        for read in (
            lambda: read_manifest(written, 2),
            lambda: read_coordinator_state(written, 2),
            lambda: load_shard(written, 2, 1),
            lambda: load_arrays(written, 2, [Wanted("digits", "w", 0, 91)], 3),
        ):
            with suppress(CheckpointUnusable):
                read()


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_noticed(written: LocalStorage, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = data.draw(st.binary(max_size=2000))
    with changed(Path(written.root) / "checkpoint-00000002" / name, lambda _: content):
        assert_noticed(written, name)


# --- writing


def test_a_complete_checkpoint_is_never_written_over(storage: LocalStorage) -> None:
    manifest = write(storage, 1)
    with pytest.raises(FileExistsError, match="take the next number"):
        save_shard(storage, manifest.header, 0, [], {})
    with pytest.raises(FileExistsError, match="take the next number"):
        save_coordinator(storage, manifest.header, {})
    assert verify(storage, 1) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int32"}, "is not what it says to be"),
        ({"dtype": "object"}, "is not what it says to be"),
        ({"stop": 4}, "is not what it says to be"),
        ({"values": np.zeros((1, 3), np.float32)}, "is not what it says to be"),
        ({"values": np.zeros(6, np.float32)[::2]}, "is not contiguous"),
        ({"shape": (2,)}, "is no part of shape"),
    ],
)
def test_an_array_that_is_not_what_it_says(
    storage: LocalStorage, change: dict[str, Any], message: str
) -> None:
    array = SavedArray("j", "w", "", "float32", (3,), 0, 3, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=message):
        save_shard(storage, Header(1, 1, "c", 1), 0, [replace(array, **change)], {})


def test_no_array_comes_twice(storage: LocalStorage) -> None:
    array = SavedArray("j", "w", "", "float32", (3,), 0, 3, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="array j/w comes twice"):
        save_shard(storage, Header(1, 1, "c", 1), 0, [array, array], {})


def test_a_manifest_that_could_not_be_read_is_not_published(storage: LocalStorage) -> None:
    files = [*save_shard(storage, Header(1, 1, "c", 1), 0, [], {})]
    header = Header(1, 1, "c", 1)
    for manifest, message in (
        (manifest_of(header, TENSORS, files), "other files"),
        (replace(manifest_of(header, (), files), created="now"), "expected a time"),
    ):
        with pytest.raises(ValueError, match=message):
            publish_manifest(storage, manifest)
    assert storage.names("checkpoint-00000001") == ["shard-0.json", "shard-0.safetensors"]


def test_more_than_the_manifest_lists_may_be_saved(storage: LocalStorage) -> None:
    """A tensor that is being filled when the checkpoint is taken has blocks, and is in no catalogue."""
    header = Header(1, 1, "c", 1)
    files = [*save_shard(storage, header, 0, arrays_on(0, TENSORS, 1, 1), {})]
    files.append(save_coordinator(storage, header, {}))
    publish_manifest(storage, manifest_of(header, TENSORS[:1], files))
    assert verify(storage, 1) == []


@pytest.fixture
def _no_failpoints() -> Iterator[None]:
    yield
    configure("")


@pytest.mark.usefixtures("_no_failpoints")
@pytest.mark.parametrize("hit", [1, 2, 3])
@pytest.mark.parametrize("name", ["tensors-written", "tensors-synced", "state-written"])
def test_a_checkpoint_that_fails_before_its_manifest_is_none(
    storage: LocalStorage, name: str, hit: int
) -> None:
    write(storage, 1)
    configure(f"checkpoint.{name}=error:ENOSPC@{hit}")
    with pytest.raises(OSError, match=f"failpoint checkpoint.{name}"):
        write(storage, 2)
    newest = newest_usable(storage, report=lambda _: None)
    assert newest is not None
    assert newest.header.checkpoint == 1


@pytest.mark.usefixtures("_no_failpoints")
@pytest.mark.parametrize(("name", "newest"), [("before-manifest", 1), ("after-manifest", 2)])
def test_the_manifest_makes_a_checkpoint(storage: LocalStorage, name: str, newest: int) -> None:
    write(storage, 1)
    configure(f"checkpoint.{name}=error:EIO")
    with pytest.raises(OSError, match=f"failpoint checkpoint.{name}"):
        write(storage, 2)
    found = newest_usable(storage, report=lambda _: None)
    assert found is not None
    assert found.header.checkpoint == newest
