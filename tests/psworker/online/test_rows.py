import pytest

from psworker.data.bad_rows import BadRows
from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.job import DataSettings
from psworker.online.rows import Rows

DATA = DataSettings(source="stream", format="csv", target="y", columns=("a", "b"))
CLASSES = DataSettings(
    source="stream",
    format="csv",
    target="y",
    columns=("a",),
    classes=("no", "yes"),
    categorical=("c",),
    hashed=True,
)


def test_columns_are_found_by_the_header_and_others_passed_over() -> None:
    rows = Rows(DATA, "test")
    assert rows.features == 2
    batch = rows.under("b;z;y;a")([b"1;x;3;4", b"", b"5;x;7;8\r"])
    assert batch.x.tolist() == [[4, 1], [8, 5]]
    assert batch.y.tolist() == [3, 7]


def test_fields_instead_of_a_header() -> None:
    data = DataSettings(source="stream", format="csv", target="y")
    rows = Rows(data, "test", fields=("y", "a", "b", "c"))
    assert rows.features == 3
    assert rows.under(None)([b"1,2,3,4"]).x.tolist() == [[2, 3, 4]]


def test_objects_are_read_as_lines_of_their_columns_are() -> None:
    batch = Rows(DATA, "test", json=True).under(None)([b'{"y": 2.5, "b": true, "a": "1e3", "other": [1]}'])
    assert batch.x.tolist() == [[1000, 1]]
    assert batch.y.tolist() == [2.5]


def test_hashed_features_are_those_of_the_data_part() -> None:
    by_line = Rows(CLASSES, "test").under("a,c,y")([b'1,"x, y",yes'])
    by_object = Rows(CLASSES, "test", json=True).under(None)([b'{"a": 1, "c": "x, y", "y": "yes"}'])
    assert by_line.keys is not None
    assert by_object.keys is not None
    assert by_line.keys.tolist() == by_object.keys.tolist()
    assert by_line.y.tolist() == by_object.y.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "test: not a JSON object"),
        (b'{"a":', "test: not JSON"),
        (b'{"a": "x", "b": 1, "y": 1}', 'column "a": "x" is not a number'),
        (b'{"b": 1, "y": 1}', 'column "a": no value'),
        (b'{"a": [1], "b": 1, "y": 1}', 'column "a": "[1]" is not a number'),
        (b'{"a": 1e999, "b": 1, "y": 1}', 'column "a": "inf" is not finite'),
        (b"\xff", "not JSON"),
    ],
)
def test_lines_that_are_none(line: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        Rows(DATA, "test", json=True).under(None)([line])
    assert reason in str(caught.value)


def test_bad_lines_are_left_out_where_the_job_says_so() -> None:
    data = DataSettings(source="stream", format="csv", target="y", columns=("a",), on_error="skip")
    make_batch = Rows(data, "test").under("a,y")
    assert make_batch([b"1,2", b"x,2", b"3", b"4,5"]).x.tolist() == [[1], [4]]
    assert len(make_batch([b"x,2"])) == 0


def test_lines_that_were_left_out_are_counted_and_said_to_be_where_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = DataSettings(source="stream", format="csv", target="y", columns=("a",), on_error="skip")
    bad_rows = BadRows(data, endless=True)
    make_batch = Rows(data, "test").under("a,y", bad_rows=bad_rows)
    lines = [b"1,2", b"", b"x,2", b"3"]
    for _ in range(2):  # they come again: a stream does not know its own lines
        make_batch(lines, lambda number: Position("topic", 100 + number))
    assert bad_rows.counts == {"number": 2, "fields": 2}
    assert 'topic, line 102, column "a": "x" is not a number' in caplog.text
    assert "topic, line 103: the row has 1 value" in caplog.text


def test_a_header_without_a_column() -> None:
    with pytest.raises(DataError, match='no column "b"'):
        Rows(DATA, "test").under("a,y")
