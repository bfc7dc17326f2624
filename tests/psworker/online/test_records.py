import pytest
from hypothesis import given
from hypothesis import strategies as st

from psworker.data.lines import MAX_LINE
from psworker.errors import DataError
from psworker.online.records import LineSplitter, Record, text_of


@given(
    st.lists(st.binary(max_size=9).map(lambda one: one.replace(b"\n", b"").replace(b"\r", b""))), st.data()
)
def test_lines_come_out_however_the_bytes_come(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    splitter = LineSplitter("test")
    found = [
        record
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
        for record in splitter.feed(text[begin:end])
    ]
    assert [record.text for record in found] == lines
    assert [text[: record.offset].count(b"\n") for record in found] == list(range(1, len(lines) + 1))
    assert splitter.rest() == [Record(b"rest", len(text))]
    assert splitter.rest() == []


def test_windows_line_ends() -> None:
    assert LineSplitter("test").feed(b"a\r\nb\n") == [Record(b"a", 3), Record(b"b", 5)]


def test_what_is_no_text_of_lines_is_refused() -> None:
    with pytest.raises(DataError, match=r"^test: a line is longer than 64 MiB"):
        LineSplitter("test").feed(bytes(MAX_LINE + 1))


def test_other_encodings_are_refused() -> None:
    with pytest.raises(DataError, match=r"^test: not UTF-8: .*have the stream write UTF-8"):
        text_of("test", "ä".encode("latin-1"))
