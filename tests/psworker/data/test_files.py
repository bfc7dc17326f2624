import bz2
import gzip
import logging
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from psworker.data import spool
from psworker.errors import DataError
from tests.psworker.data.reading import opened, read_all

ROWS = [(row, row % 3) for row in range(300)]


def text(rows: list[tuple[int, int]]) -> bytes:
    return b"a,label\n" + b"".join(b"%d,%d\n" % row for row in rows)


def zstd(content: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    packed: bytes = pyarrow.compress(content, "zstd", asbytes=True)
    return packed


def three_files(directory: Path) -> None:
    for number in range(3):
        (directory / f"part-{number}.csv").write_bytes(text(ROWS[number * 100 : number * 100 + 100]))


@pytest.mark.parametrize(
    "source", ["part-*.csv", ("part-0.csv", "part-1.csv", "part-2.csv"), ("part-0.csv", "part-[12].csv")]
)
def test_the_chunks_of_several_files_follow_each_other(tmp_path: Path, source: str | tuple[str, ...]) -> None:
    three_files(tmp_path)
    places = (source,) if isinstance(source, str) else source
    paths = tuple(str(tmp_path / place) for place in places)
    files = opened(source=paths[0] if isinstance(source, str) else paths, chunk_rows=30)
    assert files.chunks == 3 * opened(source=str(tmp_path / "part-0.csv"), chunk_rows=30).chunks == 12
    np.testing.assert_array_equal(read_all(files).x[:, 0], np.arange(300))
    with pytest.raises(IndexError, match="chunk 12 of 3 files"):
        files.read(12, "train")


def test_an_error_names_the_file_and_its_own_line(tmp_path: Path) -> None:
    three_files(tmp_path)
    (tmp_path / "part-1.csv").write_bytes(b"a,label\n1,2\nx,3\n")
    with pytest.raises(DataError, match=r'part-1\.csv, line 3, column "a": "x" is not a number'):
        read_all(opened(source=str(tmp_path / "*.csv")))


def test_other_columns_name_both_files(tmp_path: Path) -> None:
    three_files(tmp_path)
    (tmp_path / "part-2.csv").write_bytes(b"b,a,label\n1,2,3\n")
    with pytest.raises(DataError) as caught:
        opened(source=str(tmp_path / "*.csv"), columns=("a",))
    assert 'part-2.csv, line 1: column 1 is "b", but "a" in ' in str(caught.value)
    assert "part-0.csv" in str(caught.value)


def test_no_file_of_such_a_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none-\*\.csv: no file has such a name"):
        opened(source=str(tmp_path / "none-*.csv"))


def test_files_of_two_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.svm: is libsvm, but a\.csv is csv"):
        opened(source=("a.csv", "b.svm"))


def test_a_format_that_is_set_needs_no_extension(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(text(ROWS))
    assert len(read_all(opened(source=str(tmp_path / "data.txt"), format="csv"))) == 300


# --- packed


@pytest.mark.parametrize(
    ("extension", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)],
)
def test_packed_files_have_the_same_rows_in_the_same_chunks(
    tmp_path: Path, extension: str, pack: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_bytes(text(ROWS))
    (tmp_path / f"a.csv.{extension}").write_bytes(pack(text(ROWS)))
    caplog.set_level(logging.INFO, "psworker")
    plain, packed = (
        opened(source=str(tmp_path / name), chunk_rows=40) for name in ("a.csv", f"a.csv.{extension}")
    )
    assert f"unpacked {len(text(ROWS))} bytes" in caplog.text
    assert packed.chunks == plain.chunks > 5
    for chunk in reversed(range(plain.chunks)):  # and from its middle
        np.testing.assert_array_equal(packed.read(chunk, "train").x, plain.read(chunk, "train").x)


def test_what_is_unpacked_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "spool"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text(ROWS)))
    source = opened(source=str(tmp_path / "a.csv.gz"))
    assert list(directory.iterdir()) == []  # it has no name, and so is gone with the process
    assert len(read_all(source)) == 300


def test_readers_of_one_unpacked_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0123456789"))
    with open(tmp_path / "a.csv.gz", "rb") as packed:
        unpacked = spool.unpack("a.csv.gz", packed, "gz")
    one, other = unpacked.open(), unpacked.open()
    assert (one.read(4), other.read(2), one.read(2), other.read()) == (b"0123", b"01", b"45", b"23456789")
    assert (one.seek(-3, 2), one.read(), unpacked.size) == (7, b"789", 10)


@pytest.mark.parametrize(
    ("extension", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
@pytest.mark.parametrize("damage", ["cut", "none of it"])
def test_a_packed_file_that_is_damaged_is_named(
    tmp_path: Path, extension: str, pack: Callable[[bytes], bytes], damage: str
) -> None:
    path = tmp_path / f"a.csv.{extension}"
    path.write_bytes(pack(text(ROWS))[:-9] if damage == "cut" else b"a,label\n1,2\n")
    with pytest.raises(
        DataError, match=rf"a\.csv\.{extension}: cannot be unpacked .* is it a whole \.{extension}"
    ):
        opened(source=str(path))


# --- object stores


def test_objects_are_read_by_ranges() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"/bucket/part-{number}.csv", text(ROWS[number * 100 : number * 100 + 100]))
    source = opened(source="memory://bucket/part-*.csv", chunk_rows=30)
    assert source.chunks == 12
    np.testing.assert_array_equal(read_all(source).x[:, 0], np.arange(300))
    files.pipe("/bucket/part-1.csv", b"a,label\n1,2\nx,3\n")
    with pytest.raises(DataError, match=r"^memory://bucket/part-1\.csv, line 3, column"):
        read_all(opened(source="memory://bucket/part-*.csv"))
    files.pipe("/bucket/packed.csv.gz", gzip.compress(text(ROWS)))
    assert len(read_all(opened(source="memory://bucket/packed.csv.gz"))) == 300
    with pytest.raises(DataError, match=r"memory://bucket/none\.csv: No such file"):
        opened(source="memory://bucket/none.csv")
    with pytest.raises(DataError, match=r"memory://bucket/none-\*\.csv: no file has such a name"):
        opened(source="memory://bucket/none-*.csv")


def test_a_url_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    three_files(tmp_path)
    assert len(read_all(opened(source=f"file://{tmp_path}/part-*.csv"))) == 300


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)  # it remembers drivers that it has had
    monkeypatch.delitem(registry._registry, "s3a", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(DataError, match=r"needs a driver .* pip install 'asyncps\[s3\]'$"):
        opened(source="s3://bucket/a.csv")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(DataError, match=r"pip install 'asyncps\[s3\]'$"):
        opened(source="s3://bucket/a.csv")
    with pytest.raises(DataError, match=r"pip install 'asyncps\[object-store\]' gcsfs$"):
        opened(source="gs://bucket/a.csv")
