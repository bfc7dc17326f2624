import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psworker.data import lines as lines_module
from psworker.data.files import LocalFile
from psworker.data.lines import LineChunks, line_number, open_lines
from psworker.errors import DataError

pieces = st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"bc,", "é".encode(), b" " * 9, b"x" * 30]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces, st.integers(1, 50), st.booleans())
def test_every_line_is_in_exactly_one_chunk(
    tmp_path: Path, parts: list[bytes], chunk_bytes: int, bom: bool
) -> None:
    text = b"".join(parts)
    start = 3 if bom else 0
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text)
    chunks = LineChunks(LocalFile(str(path)), start, start + len(text), chunk_bytes)
    found: list[str] = []
    position = start
    for chunk in range(chunks.chunks):
        offset, texts = chunks.read(chunk)
        if texts:
            assert offset == position
            begin = start + chunk * chunk_bytes
            assert begin <= offset < begin + chunk_bytes
            assert line_number(LocalFile(str(path)), offset) == 1 + len(found)
            ended = text.splitlines(keepends=True)[len(found) : len(found) + len(texts)]
            position += len(b"".join(ended))
        found += texts
    assert found == [line.decode() for line in text.splitlines()]


def test_the_header_and_the_bom_are_in_no_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4")
    header, chunks = open_lines(LocalFile(str(path)), 100, header=True)
    assert header == "a,b"
    assert chunks.read(0) == (8, ["1,2", "3,4"])
    assert line_number(LocalFile(str(path)), 8) == 2


@pytest.mark.parametrize("chunk_rows", [1, 10, 333, 10**9])
def test_chunks_have_about_as_many_rows_as_asked_for(tmp_path: Path, chunk_rows: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456\n" * 1000)
    _, chunks = open_lines(LocalFile(str(path)), chunk_rows, header=False)
    assert chunks.chunks == -(-1000 // min(1000, chunk_rows))
    assert len(chunks.read(0)[1]) == min(1000, chunk_rows)


def test_a_chunk_is_never_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456\n" * 1000)
    monkeypatch.setattr(lines_module, "MAX_CHUNK", 100)
    assert open_lines(LocalFile(str(path)), 10**9, header=False)[1].chunk_bytes == 100
    monkeypatch.setattr(lines_module, "MAX_ROWS", 5)
    assert open_lines(LocalFile(str(path)), 10**9, header=False)[1].chunk_bytes == 40


def test_a_line_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 50)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\n" + b"c" * 51 + b"\nd\n")
    with pytest.raises(DataError, match="longer than") as caught:
        LineChunks(LocalFile(str(path)), 0, 58, 10).read(0)
    assert caught.value.line == 3
    path.write_bytes(b"a\nb\n" + b"c" * 49 + b"\nd\n")
    assert LineChunks(LocalFile(str(path)), 0, 56, 10).read(0)[1] == ["a", "b", "c" * 49]


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\nc\xff\nd\n")
    with pytest.raises(DataError, match="not UTF-8") as caught:
        open_lines(LocalFile(str(path)), 100, header=False)[1].read(0)
    assert caught.value.line == 3


@pytest.mark.parametrize("chunk", [-1, 1])
def test_a_chunk_that_is_not_there(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n")
    with pytest.raises(IndexError, match="which has 1"):
        open_lines(LocalFile(str(path)), 100, header=False)[1].read(chunk)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the header is missing"),
        (b"\na,b\n1,2\n", "line 1: the header is missing"),
        (b"a,b\n", "no rows"),
        (b"a,b", "no rows"),
        (b"a,b\n\n \r\n", "no rows"),
    ],
)
def test_a_file_without_rows(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_lines(LocalFile(str(path)), 100, header=True)


def test_blank_lines_longer_than_the_sample_are_not_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n" * (2 << 20) + b"1\n")
    _, chunks = open_lines(LocalFile(str(path)), 1 << 20, header=False)
    assert chunks.read(chunks.chunks - 1)[1][-1] == "1"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / 'none'))}: No such file"):
        open_lines(LocalFile(str(tmp_path / "none")), 100, header=False)
    with pytest.raises(DataError, match="not a regular file"):
        open_lines(LocalFile(str(tmp_path)), 100, header=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_lines(LocalFile(str(tmp_path / "pipe")), 100, header=False)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who may read everything.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="Permission denied; correct"):
        open_lines(LocalFile(str(path)), 100, header=False)


def test_bytes_that_are_not_utf8_may_be_let_through(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é\n".encode() + b"c\xff\n")
    _, texts = open_lines(LocalFile(str(path)), 100, header=False)[1].read(0, "surrogateescape")
    assert texts == ["é", "c\udcff"]
