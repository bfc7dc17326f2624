import errno
import gc
import itertools
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psserver.durability.checkpoint import newest_usable, numbers, prune
from psserver.durability.object_storage import ObjectStorage, open_storage
from psserver.durability.storage import LocalStorage, Storage, Writing, read_all
from tests.psserver.durability import made_up
from tests.s3 import S3

pytestmark = pytest.mark.xdist_group("s3")  # or each process would start an S3 server

MIB = 1 << 20
PART = 5 * MIB  # the least that S3 takes
LARGE = bytes(range(256)) * (12 * MIB // 256)  # of two parts and a bit


@pytest.fixture
def bucket(s3: S3) -> str:
    return s3.new_bucket()


def driver(**options: bool) -> Any:
    import fsspec

    return fsspec.filesystem("s3", use_listings_cache=False, **options)


@pytest.fixture
def storage(bucket: str) -> ObjectStorage:
    return ObjectStorage(driver(), f"{bucket}/run", f"s3://{bucket}/run", part=PART)


Fail = Callable[..., None]


@pytest.fixture
def fail(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let calls of an S3 method raise, except for the first ``after``."""

    def let_fail(method: str, error: Exception, *, after: int = 0) -> None:
        original, calls = driver().call_s3, itertools.count()

        def call(called: str, *args: Any, **kwargs: Any) -> Any:
            if called == method and next(calls) >= after:
                raise error
            return original(called, *args, **kwargs)

        monkeypatch.setattr(driver(), "call_s3", call)

    return let_fail


def write_all(writing: Writing, data: bytes) -> None:
    for start in range(0, len(data), MIB):
        writing.write([data[start : start + MIB // 2], memoryview(data)[start + MIB // 2 : start + MIB]])
    writing.sync()


# --- URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("checkpoints", "checkpoints"),
        ("/var/check points", "/var/check points"),
        ("/var/a:b/#1?", "/var/a:b/#1?"),
        ("file:///var/check%20points", "/var/check points"),
        ("file://localhost/var/x", "/var/x"),
        ("FILE:///var/x%23", "/var/x#"),
        ("local:///var/x", "/var/x"),
    ],
)
def test_a_directory_of_this_machine(url: str, path: str) -> None:
    opened = open_storage(url)
    assert isinstance(opened, LocalStorage)
    assert opened.root == path


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "the storage's path is empty; write a directory or"),
        ("file://host/x", r"'file://host/x' is not of this machine; write file:///directory"),
        ("file://x", "is not of this machine"),
        ("://bucket", "is no URL; write a directory, or for example s3://bucket/run"),
        ("simplecache::s3://bucket/x", "is no URL"),
        ("s3://bucket/a::zip://b", "has a '::', which is no part of a storage's name"),
        ("s3://bucket/a?versionId=1", r"has a '\?', which is no part"),
        ("file:///a#b", "has a '#', which is no part"),
        ("s3://", "'s3://' names no bucket; write for example s3://bucket/run"),
        ("S3:///", "names no bucket"),
        ("s4://bucket/x", "'s4://bucket/x' cannot be used: .*s4"),
    ],
)
def test_a_url_of_no_storage(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        open_storage(url)


@pytest.mark.parametrize(
    ("absent", "url", "remedy"),
    [
        ("s3fs", "s3://bucket/x", r"pip install 'asyncps\[s3\]'$"),
        ("fsspec.core", "s3://bucket/x", r"pip install 'asyncps\[s3\]'$"),
        ("fsspec.core", "gs://bucket/x", r"pip install 'asyncps\[object-store\]' gcsfs$"),
        ("adlfs", "abfs://box/x", r"pip install 'asyncps\[object-store\]' adlfs$"),
        ("fsspec.core", "oss://bucket/x", r"pip install 'asyncps\[object-store\]' and the driver$"),
    ],
)
def test_a_driver_that_is_not_installed_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, absent: str, url: str, remedy: str
) -> None:
    registry = pytest.importorskip("fsspec.registry")
    for scheme in ("s3", "abfs"):
        monkeypatch.delitem(registry._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ValueError, match=remedy) as caught:
        open_storage(url)
    assert url in str(caught.value)


def test_a_url_may_end_in_slashes(bucket: str) -> None:
    open_storage(f"s3://{bucket}//").publish("a/b", b"x")
    opened = open_storage(f"S3://{bucket}")
    assert opened.names("") == ["a"]
    opened.remove("")
    assert opened.names("") == []
    opened.publish("a", b"the bucket itself is still there")


def test_free_room_is_not_known(storage: Storage) -> None:
    assert storage.free() is None


# --- what is written is there as a whole or not at all


def test_a_large_file_is_uploaded_in_parts_and_appears_when_synced(
    storage: Storage, s3: S3, bucket: str
) -> None:
    storage.publish("d/shard", b"former")
    writing = storage.create("d/shard")
    writing.write([LARGE[:MIB], memoryview(LARGE)[MIB:]])
    assert s3.unfinished_uploads(bucket) == 1
    assert read_all(storage, "d/shard", MIB) == b"former"
    writing.sync()
    assert s3.unfinished_uploads(bucket) == 0
    assert read_all(storage, "d/shard", len(LARGE)) == LARGE
    with pytest.raises(OSError, match="nothing can be appended") as caught:
        writing.write([b"more"])
    assert caught.value.filename == f"s3://{bucket}/run/d/shard"
    writing.close()
    assert storage.size("d/shard") == len(LARGE)


def test_many_buffers_make_one_file(storage: Storage) -> None:
    writing = storage.create("shard")
    write_all(writing, LARGE)
    writing.close()
    assert read_all(storage, "shard", len(LARGE)) == LARGE


@pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=len)
def test_what_is_closed_without_sync_was_given_up(storage: Storage, s3: S3, bucket: str, data: bytes) -> None:
    writing = storage.create("shard")
    writing.write([data])
    writing.close()
    gc.collect()
    assert storage.names("") == []
    assert s3.unfinished_uploads(bucket) == 0


@pytest.mark.parametrize("data", [b"small", LARGE], ids=len)
def test_what_is_forgotten_was_given_up(storage: Storage, s3: S3, bucket: str, data: bytes) -> None:
    writing = storage.create("shard")
    writing.write([data])
    del writing
    gc.collect()
    assert storage.names("") == []
    assert s3.unfinished_uploads(bucket) == 0


def test_what_was_given_up_in_memory_is_gone() -> None:
    pytest.importorskip("fsspec")
    storage = open_storage("memory://given-up")
    writing = storage.create("shard")
    writing.write([b"abc"])
    writing.close()
    assert storage.names("") == []


@pytest.mark.parametrize(
    ("method", "after"),
    [
        ("create_multipart_upload", 0),
        ("upload_part", 0),
        ("upload_part", 1),
        ("upload_part", 2),
        ("complete_multipart_upload", 0),
    ],
)
def test_an_upload_that_fails_leaves_nothing(
    storage: Storage, fail: Fail, s3: S3, bucket: str, method: str, after: int
) -> None:
    fail(method, RuntimeError("out of luck"), after=after)
    writing = storage.create("shard")
    with pytest.raises(OSError, match="RuntimeError: out of luck") as caught:
        write_all(writing, LARGE)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, f"s3://{bucket}/run/shard")
    for use in (writing.sync, lambda: writing.write([b"abc"])):
        with pytest.raises(OSError, match="given up"):
            use()
    writing.close()
    assert storage.names("") == []
    assert s3.unfinished_uploads(bucket) == 0


def test_a_small_upload_that_fails_leaves_nothing(storage: Storage, fail: Fail) -> None:
    fail("put_object", PermissionError("Access Denied"))
    writing = storage.create("shard")
    writing.write([b"abc"])
    with pytest.raises(PermissionError, match=r"\[Errno 13\] Permission denied \(Access Denied\): 's3:"):
        writing.sync()
    writing.close()
    assert storage.names("") == []


def test_an_upload_that_cannot_be_discarded_is_told_and_hides_no_error(
    storage: Storage,
    fail: Fail,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    fail("upload_part", RuntimeError("out of luck"))
    monkeypatch.setattr("s3fs.core.S3File.discard", unreachable)
    writing = storage.create("shard")
    with pytest.raises(OSError, match="out of luck"):
        writing.write([LARGE])
    writing.close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("psserver")] == [
        f"s3://{bucket}/run/shard: the upload that was given up could not be discarded: "
        "[Errno 113] No route to host"
    ]


def test_files_that_are_written_through_are_refused(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    storage = ObjectStorage(fsspec.filesystem("file"), str(tmp_path), "sftp://host/x")
    with pytest.raises(OSError, match=r"this is no object store.*mount it.*'sftp://host/x/shard'"):
        storage.create("shard")
    assert list(tmp_path.iterdir()) == []


# --- what is there


def test_a_bucket_that_is_not_there(s3: S3) -> None:
    storage = open_storage("s3://nobody-made-this/run")
    assert storage.names("") == []
    storage.remove("a")
    with pytest.raises(FileNotFoundError, match=r"bucket does not exist.*'s3://nobody-made-this/run/a'"):
        storage.publish("a", b"x")
    writing = storage.create("a")
    with pytest.raises(FileNotFoundError, match=r"bucket does not exist"):
        writing.sync()


def test_what_was_listed_is_not_relied_on(bucket: str) -> None:
    storage = open_storage(f"s3://{bucket}/run")
    other = ObjectStorage(driver(skip_instance_cache=True), f"{bucket}/run", "")
    other.publish("d/1", b"x")
    assert storage.names("d") == ["1"]
    assert storage.size("d/1") == 1
    other.publish("d/2", b"xy")
    other.publish("d/1", b"xyz")
    assert storage.names("d") == ["1", "2"]
    assert storage.size("d/1") == 3
    other.remove("d/1")
    assert storage.names("d") == ["2"]
    with pytest.raises(FileNotFoundError):
        storage.open("d/1")
    other.remove("d")
    assert storage.names("d") == []


def test_what_another_removes_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    storage = ObjectStorage(files, "/removed-by-two", "memory://removed-by-two")
    storage.publish("d/1", b"x")
    storage.publish("d/2", b"x")
    found = ["/removed-by-two/d/gone", *files.find("/removed-by-two/d")]
    monkeypatch.setattr(files, "find", lambda _: found)
    storage.remove("d")
    assert storage.names("") == []


def test_a_directory_is_no_file(storage: Storage, bucket: str) -> None:
    storage.publish("d/e/f", b"x")
    for use in (storage.size, storage.open):
        with pytest.raises(IsADirectoryError, match=f"s3://{bucket}/run/d/e"):
            use("d/e")


def test_what_other_tools_make_for_directories_is_no_file(storage: Storage, s3: S3, bucket: str) -> None:
    s3.request("PUT", f"{bucket}/run/d/")
    assert storage.names("d") == []
    storage.publish("d/a", b"x")
    assert storage.names("d") == ["a"]
    assert storage.names("") == ["d"]


@pytest.mark.parametrize("other", [b"short", b""])
def test_a_file_that_is_replaced_while_it_is_read_is_an_error(
    storage: Storage, bucket: str, other: bytes
) -> None:
    storage.publish("shard", bytes(100))
    opened = storage.open("shard")
    storage.publish("shard", other)
    with pytest.raises(OSError, match=f"s3://{bucket}/run/shard"):
        opened.read_into(memoryview(bytearray(100)), 0)
    storage.remove("shard")
    with pytest.raises(FileNotFoundError, match=f"s3://{bucket}/run/shard"):
        opened.read_into(memoryview(bytearray(100)), 0)


def test_checkpoints_in_a_bucket(storage: Storage, fail: Fail) -> None:
    for number in (1, 2, 3):
        made_up.write(storage, number)
    fail("put_object", RuntimeError("out of luck"), after=3)
    with pytest.raises(OSError, match="out of luck"):
        made_up.write(storage, 4)
    said: list[str] = []
    newest = newest_usable(storage, report=said.append)
    assert newest is not None
    assert newest.header.checkpoint == 3
    assert said == ["checkpoint-00000004 is skipped: it was not completed, it has no manifest.json"]
    assert prune(storage, keep=2) == [1]
    assert numbers(storage) == [2, 3, 4]


# --- what goes wrong on the way


def uses(storage: Storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.names("d"),
        lambda: storage.size("d"),
        lambda: storage.open("d"),
        lambda: storage.publish("d", b"x"),
        lambda: storage.remove("d"),
        lambda: storage.create("d").sync(),
    ]


def test_without_credentials_every_use_is_an_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    files = driver(skip_instance_cache=True)
    for use in uses(ObjectStorage(files, f"{bucket}/run", f"s3://{bucket}/run")):
        with pytest.raises(OSError, match=rf"NoCredentialsError: .*'s3://{bucket}/run/d'"):
            use()


def test_a_store_that_does_not_answer_is_an_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and not listening: whoever connects is refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        files = driver(skip_instance_cache=True)
        for use in uses(ObjectStorage(files, "bucket/run", "s3://bucket/run")):
            with pytest.raises(OSError, match=r"EndpointConnectionError: .*'s3://bucket/run/d'"):
                use()
