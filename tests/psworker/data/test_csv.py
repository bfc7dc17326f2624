import csv
import itertools
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psworker.data import Batch, Source, open_source
from psworker.errors import DataError
from psworker.job import DataSettings


def source(tmp_path: Path, text: str, *, holdout: float = 0.0, parts: int = 1, **data: object) -> Source:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    settings = DataSettings(source=str(path), **data)  # type: ignore[arg-type]
    return open_source(settings, seed=0, holdout=holdout, parts=parts)


def read_all(opened: Source) -> Batch:
    batches = [opened.read(chunk, "train") for chunk in range(opened.chunks)]
    x, y = np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches])
    return Batch(x, y)


def test_numbers_are_read_as_float32(tmp_path: Path) -> None:
    opened = source(tmp_path, "a,label,b\n1,0, 2.5\n-3e2,1,.5\n")
    batch = opened.read(0, "train")
    assert (opened.features, opened.classes) == (2, None)
    np.testing.assert_array_equal(batch.x, [[1, 2.5], [-300, 0.5]])
    np.testing.assert_array_equal(batch.y, [0, 1])
    assert batch.x.dtype == np.float32
    assert batch.y.dtype == np.float32
    assert batch.x.flags.c_contiguous


def test_classes_map_the_text_of_labels_to_indices(tmp_path: Path) -> None:
    text = 'a,label\n1,cat\n2, dog\n3,"cat"\n4,été\n'
    opened = source(tmp_path, text, classes=("dog", "cat", "été"))
    batch = opened.read(0, "train")
    assert opened.classes == 3
    assert batch.y.tolist() == [1, 0, 1, 2]
    assert batch.y.dtype == np.int64


def test_columns_select_and_order_the_features(tmp_path: Path) -> None:
    opened = source(tmp_path, "id,a,b,label\nx7,1,2,3\n", columns=("b", "a"))
    np.testing.assert_array_equal(opened.read(0, "train").x, [[2, 1]])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_line_ends(tmp_path: Path, separator: str, end: str) -> None:
    text = "\ufeff" + "a,b,label!1,2,3!!4,5,6".replace(",", separator).replace("!", end)
    batch = source(tmp_path, text).read(0, "train")
    np.testing.assert_array_equal(batch.x, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(batch.y, [3, 6])


def test_quoted_fields_may_hold_separators_and_quotes(tmp_path: Path) -> None:
    text = '"a, really",b,label\n"1",2,"x ""y"", z"\n'
    opened = source(tmp_path, text, columns=("a, really", "b"), classes=('x "y", z',))
    batch = opened.read(0, "train")
    np.testing.assert_array_equal(batch.x, [[1, 2]])
    assert batch.y.tolist() == [0]


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 1000])
def test_chunks_and_parts_are_all_rows_once(tmp_path: Path, chunk_rows: int) -> None:
    rows = [(i, i / 8, i % 3) for i in range(200)]
    text = "a,b,label\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    opened = source(tmp_path, text, chunk_rows=chunk_rows, holdout=0.3)
    pieces = [opened.read(c, part) for c in range(opened.chunks) for part in ("train", "holdout")]
    found = np.concatenate([np.column_stack([piece.x, piece.y]) for piece in pieces])
    np.testing.assert_array_equal(found[found[:, 0].argsort()], np.array(rows, np.float32))


number = st.floats(-1e6, 1e6, width=32).map(repr) | st.integers(-99, 99).map(str)
table = st.lists(st.tuples(number, number, number), min_size=1, max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table, st.booleans())
def test_the_same_numbers_as_the_csv_module_reads(
    tmp_path: Path, rows: list[tuple[str, str, str]], quote: bool
) -> None:
    with open(tmp_path / "b.csv", "w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
        writer.writerows([("a", "b", "label"), *rows])
    opened = open_source(DataSettings(source=str(tmp_path / "b.csv"), chunk_rows=4), seed=0, holdout=0.0)
    batch = read_all(opened)
    expected = np.array([[float(cell) for cell in row] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(np.column_stack([batch.x, batch.y]), expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "abc,2,3",
            'column "a": "abc" is not a number; correct the row, or the job: a column of words',
        ),
        ("1,2,cat", 'column "label": "cat" is not a number; list the labels in [data] classes'),
        ("1,,3", 'column "b": no value; fill it in'),
        ("1,  ,3", 'column "b": no value; fill it in'),
        ("1,nan,3", 'column "b": no value; fill it in'),
        ("1,2,", 'column "label": no value'),
        ("1,2,NA", 'column "label": no value'),
        ("1,2", "the row has 2 values, the header 3"),
        ("1,2,3,4", "the row has 4 values, the header 3"),
        ("1,-inf,3", 'column "b": "-inf" is not finite'),
        ("1,1e39,3", 'column "b": "1e39" is too large for float32'),
        ("1_0,2,3", 'column "a": "1_0" is not a number'),
        ("\u0661,2,3", 'column "a": "\u0661" is not a number'),
        ("1\x00,2,3", 'column "a"'),
        ('"1,2,3', "cannot be split into fields (unexpected end of data)"),
        ('x"y,"2,3', "cannot be split into fields"),
        ("1\r2,2,3", "cannot be split into fields"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bad_row_is_named_by_its_true_line(tmp_path: Path, row: str, message: str, end: str) -> None:
    good = f"1,2,3{end}" * 50
    text = f"a,b,label{end}{end}{good}{end}{row}{end}{good}bad,2,3{end}"
    opened = source(tmp_path, text, chunk_rows=9)
    with pytest.raises(DataError) as caught:
        read_all(opened)
    assert message in str(caught.value)
    assert caught.value.line == 54
    assert caught.value.path.endswith("a.csv")


def test_a_label_that_is_in_no_class(tmp_path: Path) -> None:
    opened = source(tmp_path, "a,label\n1,cat\n2,cow\n", classes=("cat", "crow"))
    with pytest.raises(DataError, match=r'line 3, column "label": "cow" is not in .* did you mean "crow"'):
        opened.read(0, "train")


def test_only_the_part_that_is_asked_for_is_parsed(tmp_path: Path) -> None:
    text = "a,label\n" + "".join(f"{i},0\n" for i in range(40))
    whole = source(tmp_path, text, holdout=0.5)
    held_out = int(whole.read(0, "holdout").x[0, 0])
    broken = source(tmp_path, text.replace(f"\n{held_out},0\n", "\nbad,0\n"), holdout=0.5)
    broken.read(0, "train")
    with pytest.raises(DataError, match=f"line {held_out + 2}"):
        broken.read(0, "holdout")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", (), "line 1: the header is missing"),
        ("a,label\n", (), "no rows"),
        ("a,lable\n1,2\n", (), 'no column "label", which [data] target names; did you mean "lable"?'),
        ("a,label\n1,2\n", ("b",), 'no column "b", which [data] columns names'),
        ("a,a,label\n1,2,3\n", (), 'two columns are named "a"'),
        (",a,label\n1,2,3\n", (), "a column has no name"),
        ("label\n1\n", (), "no column but the target"),
        ('"a,label\n1,2\n', (), "line 1: cannot be split into fields"),
        ("a\rb,label\n1,2\n", (), "line 1: cannot be split into fields"),
    ],
)
def test_a_file_that_cannot_be_opened(
    tmp_path: Path, text: str, columns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        source(tmp_path, text, columns=columns)
    assert message in str(caught.value)


def test_columns_that_are_not_used_may_repeat_or_be_nameless(tmp_path: Path) -> None:
    opened = source(tmp_path, ",,a,label\nx,y,1,2\n", columns=("a",))
    np.testing.assert_array_equal(opened.read(0, "train").x, [[1]])


def test_no_such_file() -> None:
    with pytest.raises(DataError, match=r"none\.csv: No such file"):
        open_source(DataSettings(source="none.csv"), seed=0, holdout=0.0)


# --- parts by a column's value


def rows(batches: Iterable[Batch]) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for batch in batches for row in np.column_stack([batch.x, batch.y]).tolist())


users = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=5).map(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    users=st.lists(st.sampled_from(["7", "7.0", "é", "a,b", 'the "x"', ""]) | users, min_size=1, max_size=60),
    quote=st.booleans(),
    parts=st.integers(1, 4),
    holdout=st.sampled_from([0.0, 0.4]),
)
def test_parts_are_all_rows_once_and_a_value_is_in_one_part(
    tmp_path: Path, users: list[str], quote: bool, parts: int, holdout: float
) -> None:
    with open(tmp_path / "b.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
        writer.writerows([("a", "user", "label"), *((row, user, 0) for row, user in enumerate(users))])
    data = DataSettings(source=str(tmp_path / "b.csv"), chunk_rows=7, partition="hash:user")
    opened = open_source(data, seed=0, holdout=holdout, parts=parts)
    whole = open_source(data, seed=0, holdout=holdout)
    chunks = range(opened.chunks)
    by_part = [[opened.read(chunk, "train", part) for chunk in chunks] for part in range(parts)]
    train = rows(whole.read(chunk, "train") for chunk in chunks)
    assert rows(itertools.chain(*by_part)) == train
    seen = [{users[int(row[0])] for row in rows(batches)} for batches in by_part]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(seen, 2))
    # What is held out does not depend on the parts.
    held_out = rows(opened.read(chunk, "holdout") for chunk in chunks)
    assert sorted(train + held_out) == [(row, 0) for row in range(len(users))]
    assert held_out == rows(whole.read(chunk, "holdout") for chunk in chunks)


@pytest.mark.parametrize("row", ["{},{},7", '{},"{}",7', "{}, {} ,7"])
def test_the_part_is_that_of_the_text_however_it_is_written(tmp_path: Path, row: str) -> None:
    names = [f"é{number}" for number in range(400)]
    text = "a,user,label\n" + "".join(row.format(*one) + "\n" for one in enumerate(names))
    opened = source(tmp_path, text, partition="hash:user", parts=4)
    assert opened.features == 1
    for part in range(4):
        expected = [number for number, name in enumerate(names) if zlib.crc32(name.encode()) % 4 == part]
        assert opened.read(0, "train", part).x[:, 0].tolist() == expected
        assert 70 < len(expected) < 130  # nor do few parts hold nearly all values


def test_the_column_of_the_partition_is_a_feature_only_if_it_is_listed(tmp_path: Path) -> None:
    text = "a,b,label\n1,2,3\n"
    assert source(tmp_path, text, partition="hash:b").read(0, "train").x.tolist() == [[1]]
    assert source(tmp_path, text, partition="hash:b", columns=("b",)).read(0, "train").x.tolist() == [[2]]
    assert source(tmp_path, text, partition="hash:label").read(0, "train").x.tolist() == [[1, 2]]


@pytest.mark.parametrize("row", ["1,x", "1,x,2,3", '"1,x,2', 'x"y,"x,2'])
def test_a_row_of_no_part_is_refused_once(tmp_path: Path, row: str) -> None:
    opened = source(tmp_path, f"a,user,label\n1,x,2\n{row}\n", partition="hash:user", parts=3)
    with pytest.raises(DataError, match="line 3"):
        opened.read(0, "train", 0)
    assert sum(len(opened.read(0, "train", part)) for part in (1, 2)) in (0, 1)


@pytest.mark.parametrize("row", ["1,x", "1,x,2,3", '"1,x,2', 'x"y,"x,2'])
def test_a_row_of_no_part_is_left_out_once(tmp_path: Path, row: str) -> None:
    text = f"a,user,label\n1,x,2\n{row}\n"
    opened = source(tmp_path, text, partition="hash:user", parts=3, on_error="skip")
    assert sum(len(opened.read(0, "train", part)) for part in range(3)) == 1
    assert opened.skipped == {"fields": 1}
    assert [dict(opened.skipped_in(0, "train", part)) for part in range(3)] == [{"fields": 1}, {}, {}]
    assert opened.skipped_in(0, "holdout") == {}


def test_errors_in_the_rows_of_other_parts_are_not_seen(tmp_path: Path) -> None:
    opened = source(tmp_path, "a,user,label\nbad,a,1\n2,d,3\n", partition="hash:user", parts=2)
    bad, good = (zlib.crc32(name) % 2 for name in (b"a", b"d"))
    assert bad != good
    assert opened.read(0, "train", good).x.tolist() == [[2]]
    with pytest.raises(DataError, match="line 2"):
        opened.read(0, "train", bad)


def test_there_are_no_other_parts(tmp_path: Path) -> None:
    text = "a,user,label\n1,2,3\n"
    cut, whole = source(tmp_path, text, partition="hash:user", parts=2), source(tmp_path, text, parts=2)
    for opened, part in ((cut, 2), (cut, -1), (whole, 0)):
        with pytest.raises(IndexError, match=f"part {part} "):
            opened.read(0, "train", part)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,users,label", 'no column "user", which [data] partition names; did you mean "users"?'),
        ("a,user,user,label", 'two columns are named "user"'),
        ("user,label", "no column but the target and that of [data] partition"),
    ],
)
def test_a_column_that_cannot_cut_the_data(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        source(tmp_path, f"{header}\n1,2,3,4\n", partition="hash:user")
    assert message in str(caught.value)


MEASURE = """
import re, sys
from pathlib import Path
from psworker.data import open_source
from psworker.job import DataSettings
data = DataSettings(source=sys.argv[1], chunk_rows=10**9, partition=sys.argv[2])
source = open_source(data, seed=0, holdout=0.0)
part = 0 if data.hash_column else None
rows = sum(len(source.read(chunk, "train", part)) for chunk in (0, 1, source.chunks - 1))
# Not getrusage: its maximum is inherited from the process that started this one.
print(rows, int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("row", "partition"),
    [
        (b"1,2\n", "leases"),
        pytest.param(b"0.123456,-1.234567\n", "leases", marks=pytest.mark.long),
        pytest.param(b"1," * 500 + b"1\n", "leases", marks=pytest.mark.long),
        pytest.param(b"1,2,3\n", "hash:a1", marks=pytest.mark.long),
        (b"1," * 500 + b"1\n", "hash:a1"),
    ],
)
def test_a_chunk_of_a_2_gb_file_takes_little_memory(tmp_path: Path, row: bytes, partition: str) -> None:
    path = tmp_path / "big.csv"
    block = row * ((17 << 20) // len(row))
    with open(path, "wb") as file:
        file.write(b",".join(b"a%d" % i for i in range(row.count(b","))) + b",label\n" + block)
        file.seek(2_000_000_000)  # a hole that takes no disk; it is in none of the chunks read
        file.write(b"\n" + block)
    command = [sys.executable, "-c", MEASURE, str(path), partition]
    rows, megabytes = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert int(rows) * len(row) > 4 << 20
    assert int(megabytes) < 150
