import errno
import itertools
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from psserver.durability.object_storage import open_storage
from psserver.durability.storage import LocalStorage, Storage, read_all, reading

NUMBERS = itertools.count()
ODD = ("a b", "ä\u0301✓", "[1]*", "%20+&=;:@", "..x", "-rf", "'\"\\", "$HOME~", "{a,b}")


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet, of each kind of storage."""
    match request.param:
        case "local":
            return str(tmp_path / "root")
        case "memory":
            pytest.importorskip("fsspec")
            return f"memory://run-{next(NUMBERS)}"
        case _:
            return f"s3://{request.getfixturevalue('s3').new_bucket()}/run"


@pytest.fixture
def storage(url: str) -> Storage:
    return open_storage(url)


def write(storage: Storage, path: str, *buffers: bytes | bytearray | memoryview) -> None:
    writing = storage.create(path)
    writing.write(buffers)
    writing.sync()
    writing.close()


def contents(storage: Storage, path: str) -> bytes:
    return read_all(storage, path, most=1 << 30)


# --- what holds for every storage


def test_where_nothing_was_written_nothing_is(storage: Storage) -> None:
    assert storage.names("") == []
    assert storage.names("checkpoint-1") == []
    storage.remove("checkpoint-1")
    for use in (storage.size, storage.open):
        with pytest.raises(FileNotFoundError, match="missing"):
            use("checkpoint-1/missing")


def test_what_is_synced_can_be_read(storage: Storage) -> None:
    write(storage, "checkpoint-1/shard-0", b"abc", bytearray(b"de"), b"", memoryview(b"fgh"))
    assert contents(storage, "checkpoint-1/shard-0") == b"abcdefgh"
    assert storage.size("checkpoint-1/shard-0") == 8


def test_synced_twice_and_closed_twice(storage: Storage) -> None:
    writing = storage.create("a")
    writing.write([b"abc"])
    writing.sync()
    writing.sync()
    writing.close()
    writing.close()
    assert contents(storage, "a") == b"abc"


def test_a_closed_file_cannot_be_written(storage: Storage) -> None:
    writing = storage.create("a")
    writing.close()
    for use in (partial(writing.write, [b"abc"]), writing.sync):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is looked at)
            use()
        assert caught.value.errno == errno.EBADF


def test_more_buffers_than_a_system_call_takes(storage: Storage) -> None:
    buffers = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    write(storage, "a", *buffers)
    assert contents(storage, "a") == b"".join(buffers)


def test_an_empty_file(storage: Storage) -> None:
    write(storage, "created")
    storage.publish("published", b"")
    assert storage.names("") == ["created", "published"]
    assert contents(storage, "created") == contents(storage, "published") == b""


def test_writing_again_replaces(storage: Storage) -> None:
    write(storage, "a", b"a long first version")
    write(storage, "a", b"short")
    assert contents(storage, "a") == b"short"


def test_publishing_again_replaces_and_leaves_nothing_else(storage: Storage) -> None:
    for data in (b"first, and longer", b"second", b""):
        storage.publish("checkpoint-1/manifest.json", data)
        assert contents(storage, "checkpoint-1/manifest.json") == data
    assert storage.names("checkpoint-1") == ["manifest.json"]


def test_names_are_those_of_one_directory_and_sorted(storage: Storage) -> None:
    for path in ("b/2", "b/10", "b/c/d/e", "a", "bb/x"):
        storage.publish(path, b"x")
    assert storage.names("") == ["a", "b", "bb"]
    assert storage.names("b") == ["10", "2", "c"]
    assert storage.names("b/c") == ["d"]
    assert storage.names("a") == []


def test_names_are_those_of_now_whoever_wrote_them(storage: Storage, url: str) -> None:
    other = open_storage(url)
    assert storage.names("a") == []
    other.publish("a/1", b"x")
    assert storage.names("a") == ["1"]
    write(other, "a/2", b"xy")
    assert storage.names("a") == ["1", "2"]
    assert storage.size("a/2") == 2
    write(other, "a/2", b"xyz")
    assert storage.size("a/2") == 3
    other.remove("a/1")
    assert storage.names("a") == ["2"]
    with pytest.raises(FileNotFoundError):
        storage.size("a/1")


def test_reads_any_range(storage: Storage) -> None:
    storage.publish("a", bytes(range(100)))
    with reading(storage, "a") as opened:
        for offset, length, read in [
            (0, 100, 100),
            (7, 5, 5),
            (90, 20, 10),
            (100, 5, 0),
            (500, 5, 0),
            (3, 0, 0),
        ]:
            buffer = bytearray(b"\xff" * length)
            assert opened.read_into(memoryview(buffer), offset) == read
            assert buffer[:read] == bytes(range(offset, offset + read))
            assert buffer[read:] == b"\xff" * (length - read)


def test_removes_files_and_directories_and_nothing_beside_them(storage: Storage) -> None:
    for path in ("a", "ab", "d/1", "d/e/2", "d-2/1", "d2"):
        storage.publish(path, b"x")
    storage.remove("a")
    storage.remove("d")
    assert storage.names("") == ["ab", "d-2", "d2"]
    assert storage.names("d") == []
    storage.remove("d")
    storage.publish("d/1", b"y")
    assert contents(storage, "d/1") == b"y"


def test_roots_and_directories_with_odd_names(url: str) -> None:
    storage = open_storage(f"{url}/{'/'.join(ODD)}")
    for name in ODD:
        storage.publish(f"{name}/published", name.encode())
        write(storage, f"{name}/created", b"abc")
    for path in ("1", "a", "b", "a b2/file"):  # what patterns would match
        storage.publish(path, b"other")
    assert set(storage.names("")) == {*ODD, "1", "a", "b", "a b2"}
    for name in ODD:
        assert storage.names(name) == ["created", "published"]
        assert contents(storage, f"{name}/published") == name.encode()
        storage.remove(name)
    assert storage.names("") == ["1", "a", "a b2", "b"]


def test_threads_write_at_the_same_time(storage: Storage) -> None:
    def save(shard: int) -> None:
        write(storage, f"checkpoint-1/shard-{shard}", bytes([shard]) * 1000)
        storage.publish(f"checkpoint-1/shard-{shard}.json", b"%d" % shard)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save, range(8)))
    assert len(storage.names("checkpoint-1")) == 16
    for shard in range(8):
        assert contents(storage, f"checkpoint-1/shard-{shard}") == bytes([shard]) * 1000
        assert contents(storage, f"checkpoint-1/shard-{shard}.json") == b"%d" % shard


def test_two_remove_the_same_directory(storage: Storage, url: str) -> None:
    for number in range(40):
        storage.publish(f"d/{number % 4}/{number}", b"x")
    storage.publish("e", b"x")
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda remover: remover.remove("d"), (storage, open_storage(url))))
    assert storage.names("") == ["e"]


def test_too_large_a_file_is_not_read(storage: Storage) -> None:
    storage.publish("a", bytes(100))
    with pytest.raises(ValueError, match="a has 100 bytes, more than 99"):
        read_all(storage, "a", most=99)


# --- a directory of this machine: what makes files last


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the operating system, in order."""
    made: list[str] = []

    def record(name: str, describe: Callable[..., str]) -> None:
        original = getattr(os, name)

        def recorded(*args: object, **kwargs: object) -> object:
            made.append(f"{name} {describe(*args)}")
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, recorded)

    def of_fd(fd: int, *_: object) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    for name in ("writev", "fsync", "fdatasync"):
        record(name, of_fd)
    for name in ("mkdir", "unlink", "rmdir"):
        record(name, lambda path, *_: Path(path).name)
    record("rename", lambda source, target: f"{Path(source).name} {Path(target).name}")
    return made


def test_a_synced_file_lasts_and_so_do_its_name_and_directories(tmp_path: Path, calls: list[str]) -> None:
    writing = LocalStorage(tmp_path / "root").create("log/1")
    writing.write([b"a", b"b"])
    writing.sync()
    assert calls == [
        "mkdir root",
        f"fsync {tmp_path.name}",
        "mkdir log",
        "fsync root",
        "writev 1",
        "fdatasync 1",
        "fsync log",
    ]
    calls.clear()
    writing.write([b"c"])
    writing.sync()
    writing.close()
    assert calls == ["writev 1", "fdatasync 1"]


def test_a_file_is_published_when_it_is_whole(tmp_path: Path, calls: list[str]) -> None:
    LocalStorage(tmp_path).publish("manifest", b"data")
    assert calls == [
        "writev manifest.new",
        "fdatasync manifest.new",
        "rename manifest.new manifest",
        f"fsync {tmp_path.name}",
    ]


def test_a_removal_lasts(tmp_path: Path, calls: list[str]) -> None:
    storage = LocalStorage(tmp_path)
    storage.publish("d/a", b"x")
    calls.clear()
    storage.remove("d/a")
    assert calls == ["unlink a", "fsync d"]
    calls.clear()
    storage.remove("d")
    assert calls == ["rmdir d", f"fsync {tmp_path.name}"]
    calls.clear()
    storage.remove("d")
    assert [call for call in calls if "fsync" in call] == []


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_sync_that_fails_is_told_and_tried_again_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writing = LocalStorage(tmp_path).create("a")
    writing.write([b"abc"])
    synced: list[str] = []

    def fail(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            writing.sync()
    writing.close()
    assert synced == [str(tmp_path / "a" if call == "fdatasync" else tmp_path)] * 2


@pytest.mark.parametrize("call", ["writev", "fdatasync", "rename"])
def test_a_failed_publish_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    storage = LocalStorage(tmp_path)
    storage.publish("manifest", b"former")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            storage.publish("manifest", b"next")
    assert storage.names("") == ["manifest"]
    assert contents(storage, "manifest") == b"former"


def test_what_a_system_call_leaves_is_written_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = itertools.cycle([1, 5, 1000, 2])

    def write_some(fd: int, buffers: list[memoryview]) -> int:
        return os.write(fd, b"".join(buffers)[: next(sizes)])

    def read_some(fd: int, buffers: list[memoryview], offset: int) -> int:
        data = os.pread(fd, min(next(sizes), len(buffers[0])), offset)
        buffers[0][: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "writev", write_some)
    monkeypatch.setattr(os, "preadv", read_some)
    buffers = [bytes([number]) * number for number in range(100)]
    storage = LocalStorage(tmp_path)
    write(storage, "a", *buffers)
    assert contents(storage, "a") == b"".join(buffers)


def test_a_closed_file_does_not_close_another_that_has_its_number(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    writing = storage.create("a")
    writing.close()
    other = storage.create("b")  # is given the number that is free
    writing.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        writing.write([b"lost"])
    other.write([b"kept"])
    other.close()
    assert contents(storage, "b") == b"kept"
    assert contents(storage, "a") == b""


def test_the_umask_is_kept_to(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from psserver.durability.storage import LocalStorage\n"
        "os.umask(0o027)\n"
        "storage = LocalStorage(sys.argv[1])\n"
        "storage.create('d/created').close()\n"
        "storage.publish('d/published', b'x')\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "root"], check=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "root").rglob("*")}
    assert modes == {"d": 0o750, "created": 0o640, "published": 0o640}
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o750


def test_roots_and_directories_may_be_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    storage = LocalStorage(tmp_path / "root")
    storage.publish("checkpoint-1/manifest", b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_bytes(b"kept")
    (tmp_path / "disk" / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    assert storage.names("") == ["checkpoint-1", "checkpoint-2"]
    assert contents(storage, "checkpoint-2/kept") == b"kept"
    storage.remove("checkpoint-2")
    storage.remove("checkpoint-1")
    assert storage.names("") == []
    assert (tmp_path / "elsewhere" / "kept").read_bytes() == b"kept"
    assert (tmp_path / "root").is_symlink()


def test_links_to_nothing_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    LocalStorage(tmp_path).remove("gone")
    assert not (tmp_path / "gone").is_symlink()


def test_a_root_that_is_relative_or_has_no_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage("a/b/c")
    storage.publish("d/e", b"x")
    assert (tmp_path / "a/b/c/d/e").read_bytes() == b"x"
    assert LocalStorage(".").names("") == ["a"]


def test_what_is_removed_or_replaced_is_still_read_to_its_end(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.publish("d/removed", b"abcdef")
    storage.publish("d/replaced", b"ghijkl")
    with reading(storage, "d/removed") as removed, reading(storage, "d/replaced") as replaced:
        storage.publish("d/replaced", b"new")
        storage.remove("d")
        for opened, data in ((removed, b"abcdef"), (replaced, b"ghijkl")):
            buffer = bytearray(9)
            assert opened.read_into(memoryview(buffer), 0) == 6
            assert buffer[:6] == data


def test_whoever_reads_while_it_is_published_sees_one_or_the_other(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    versions = [bytes([number]) * (number + 1) * 1000 for number in range(40)]
    storage.publish("manifest", versions[0])
    seen: list[bytes] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            with reading(storage, "manifest") as opened:
                buffer = bytearray(100_000)
                seen.append(bytes(buffer[: opened.read_into(memoryview(buffer), 0)]))

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        try:
            for version in versions[1:]:
                storage.publish("manifest", version)
        finally:
            over.set()
        reader.result()
    assert seen
    assert set(seen) <= set(versions)


def test_a_file_in_the_way_of_a_directory_is_an_error(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.publish("a", b"x")
    with pytest.raises(NotADirectoryError):
        storage.publish("a/b", b"y")
    storage.remove("a/b")
    assert contents(storage, "a") == b"x"


def test_says_how_much_still_fits(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    for root in (tmp_path, tmp_path / "not" / "there" / "yet"):
        found = LocalStorage(root).free()
        assert found is not None
        assert found == pytest.approx(free, rel=0.5)


def test_a_device_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/dev/full")
    writing = LocalStorage(tmp_path).create("a")
    with pytest.raises(OSError, match="No space left") as caught:
        writing.write([b"abc"])
    assert caught.value.errno == errno.ENOSPC
    writing.close()


FILL = """
import errno, os, sys
from psserver.durability.storage import LocalStorage, read_all
storage = LocalStorage(sys.argv[1])
storage.publish("manifest", b"former")
assert storage.free() <= 256 * 1024
writing = storage.create("shard")
try:
    writing.write([bytes(100_000)] * 4)
except OSError as error:
    print(error.errno == errno.ENOSPC)
writing.close()
print(storage.free())
for path in ("manifest", "other"):
    try:
        storage.publish(path, bytes(100_000))
    except OSError as error:
        print(error.errno == errno.ENOSPC)
print(storage.names(""), read_all(storage, "manifest", 100))
storage.remove("shard")
storage.publish("manifest", bytes(100_000))
print(storage.size("manifest"))
"""


def mounts_are_allowed() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not mounts_are_allowed(), reason="needs root, for a small file system of its own")
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-ec", script, "-", str(tmp_path), sys.executable, FILL]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.split("\n") == [
        "True",
        "0",
        "True",
        "True",
        "['manifest', 'shard'] b'former'",
        "100000",
        "",
    ]
