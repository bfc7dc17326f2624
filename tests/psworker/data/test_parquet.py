import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psworker.data.parquet import as_text
from psworker.errors import DataError
from psworker.keys import hash_features
from tests.psworker.data.reading import by_key, opened, read_all, surveyed

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


def test_numbers_of_all_types_become_float32(path: Path) -> None:
    decimal = pa.array([1, 2]).cast(pa.decimal128(25, 2))
    columns = {
        "i": [1, 2],
        "f": [0.5, -3e2],
        "b": [True, False],
        "d": decimal,
        "label": pa.array([0, 1], pa.int8()),
    }
    source = opened(source=write(path, columns))
    batch = source.read(0, "train")
    assert (source.features, source.classes, source.chunks) == (4, None, 1)
    assert batch.x.tolist() == [[1, 0.5, 1, 1], [2, -300, 0, 2]]
    assert batch.x.dtype == np.float32
    assert batch.y.dtype == np.float32
    assert batch.x.flags.c_contiguous


def test_only_the_columns_that_are_used_are_decoded(path: Path) -> None:
    columns = {
        "a": [1.0, 2.0],
        "junk": [b"x", b"y"],
        "when": [datetime.datetime.now(datetime.UTC)] * 2,
        "label": [0, 1],
    }
    assert opened(source=write(path, columns), columns=("a",)).read(0, "train").x.tolist() == [[1], [2]]


@pytest.mark.parametrize("group", [7, 50, 1000])
@pytest.mark.parametrize("chunk_rows", [3, 20, 10**6])
def test_chunks_and_splits_are_all_rows_once(path: Path, group: int, chunk_rows: int) -> None:
    rows = np.arange(1000)
    name = write(path, {"a": rows, "label": rows % 3}, row_group_size=group)
    source = opened(source=name, chunk_rows=chunk_rows, holdout=0.3)
    slices = min(8, -(-group // chunk_rows))
    assert abs(source.chunks - -(-1000 // group) * slices) < 8  # the last row group may be smaller
    found = [source.read(chunk, split) for chunk in range(source.chunks) for split in ("train", "holdout")]
    a, y = (np.concatenate(parts) for parts in zip(*((one.x[:, 0], one.y) for one in found), strict=True))
    np.testing.assert_array_equal(np.sort(a), rows)
    np.testing.assert_array_equal(y, a % 3)


def test_a_row_group_that_is_too_large_is_cut_as_often_as_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psworker.data.features._MOST_CELLS", 100)
    source = opened(source=write(path, {"a": np.arange(1000), "label": np.arange(1000)}))
    assert source.chunks == 40
    assert max(len(source.read(chunk, "train")) for chunk in range(40)) == 25
    assert read_all(source).x[:, 0].tolist() == list(range(1000))


def test_strings_dictionaries_and_whole_numbers_are_categories(path: Path) -> None:
    columns = {
        "s": ["x", None, "y"],
        "d": pa.array(["p", "q", "p"]).dictionary_encode(),
        "i": [17, 17, None],
        "t": ["a b", "A", None],
        "label": [0, 1, 0],
    }
    source = opened(source=write(path, columns), categorical=("s", "d", "i"), text=("t",), hashed=True)
    expected = [
        {"s=x": 1, "d=p": 1, "i=17": 1, "t=a": 1, "t=b": 1},
        {"s=": 1, "d=q": 1, "i=17": 1, "t=a": 1},
        {"s=y": 1, "d=p": 1, "i=": 1},
    ]
    keys = [{int(hash_features([name])[0]): value for name, value in row.items()} for row in expected]
    assert by_key(source.read(0, "train")) == keys


def test_a_csv_of_the_same_table_has_the_same_features(tmp_path: Path, path: Path) -> None:
    columns = {"n": [0.5, 2.0], "s": ["x", ""], "i": [3, 4], "label": ["u", "v"]}
    (tmp_path / "a.csv").write_text("n,s,i,label\n0.5,x,3,u\n2,,4,v\n")
    data: dict[str, Any] = {"categorical": ("s", "i"), "classes": ("v", "u"), "hash_buckets": 16}
    of_parquet = opened(source=write(path, columns), **data).read(0, "train")
    of_csv = opened(source=str(tmp_path / "a.csv"), **data).read(0, "train")
    np.testing.assert_array_equal(of_parquet.x, of_csv.x)
    assert of_parquet.y.tolist() == of_csv.y.tolist() == [1, 0]


@pytest.mark.parametrize("labels", [["0", "1"], [0, 1], [0.0, 1.0], pa.array(["0", "1"]).dictionary_encode()])
def test_labels_of_classes_are_texts_or_whole_numbers(path: Path, labels: Any) -> None:
    source = opened(source=write(path, {"a": [1, 2], "label": labels}), classes=("1", "0"))
    assert source.read(0, "train").y.tolist() == [1, 0]


def test_nulls_and_nan_are_missing(path: Path) -> None:
    name = write(path, {"a": [1.0, None, float("nan"), 4.0], "b": [1, 2, 3, None], "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r'a\.parquet, row 2, column "a": no value') as caught:
        read_all(opened(source=name))
    assert (caught.value.row, caught.value.line, caught.value.column) == (2, None, "a")
    assert read_all(opened(source=name, missing="zero")).x.tolist() == [[1, 1], [0, 2], [0, 3], [4, 0]]
    assert read_all(surveyed(opened(source=name, missing="mean"))).x.tolist() == [
        [1, 1],
        [2.5, 2],
        [2.5, 3],
        [4, 2],
    ]
    assert read_all(opened(source=name, missing="skip")).x.tolist() == [[1, 1]]


def test_the_row_of_an_error_is_that_of_the_file(path: Path) -> None:
    a = np.arange(500.0)
    a[333] = np.inf
    name = write(path, {"a": a, "label": np.zeros(500)}, row_group_size=90)
    source = opened(source=name, chunk_rows=20)
    with pytest.raises(DataError, match=r'row 334, column "a": is not finite'):
        read_all(source)
    skipping = opened(source=name, chunk_rows=20, on_error="skip")
    assert len(read_all(skipping)) == 499
    assert skipping.skipped == {"number": 1}
    with pytest.raises(DataError, match=r'row 2, column "label": no value'):
        read_all(opened(source=write(path, {"a": [1, 2], "label": [1, None]})))


@pytest.mark.parametrize(
    ("column", "data", "message"),
    [
        ([datetime.datetime(2026, 1, 1)], {}, r'column "a": is a time \(timestamp'),
        ([datetime.date(2026, 1, 1)], {"categorical": ("a",)}, r'column "a": is a time \(date32'),
        ([[1, 2]], {}, r"is of type list.*expected numbers or texts"),
        (["x"], {}, r"is of type string; list it in \[data\] categorical or text"),
        ([1], {"columns": ("b",)}, 'no column "b", which'),
        ([1], {"target": "y"}, r'no column "y", which \[data\] target names'),
    ],
)
def test_a_column_that_cannot_be_used(path: Path, column: Any, data: dict[str, Any], message: str) -> None:
    name = write(path, {"a": column, "label": [1]})
    with pytest.raises(DataError, match=message):
        opened(source=name, **data)


def test_a_target_of_texts_needs_its_classes(path: Path) -> None:
    with pytest.raises(
        DataError, match=r'column "label": is of type string; list the labels in \[data\] classes'
    ):
        opened(source=write(path, {"a": [1], "label": ["x"]}))


def test_several_files_some_of_them_without_rows(tmp_path: Path) -> None:
    for number, rows in enumerate((10, 0, 5)):
        write(tmp_path / f"{number}.parquet", {"a": np.arange(rows, dtype=float), "label": np.zeros(rows)})
    assert len(read_all(opened(source=str(tmp_path / "*.parquet")))) == 15
    with pytest.raises(DataError, match="has no rows"):
        opened(source=str(tmp_path / "1.parquet"))
    write(tmp_path / "3.parquet", {"b": [1.0], "label": [1.0]})
    with pytest.raises(DataError, match=r'3\.parquet: column 1 is "b", but "a" in .*0\.parquet'):
        opened(source=str(tmp_path / "*.parquet"), columns=())


def test_what_is_no_parquet_file(path: Path) -> None:
    path.write_bytes(b"a,label\n1,2\n" * 9)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        opened(source=str(path))


def test_a_file_in_an_object_store() -> None:
    fsspec = pytest.importorskip("fsspec")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": np.arange(100), "label": np.arange(100)}), sink, row_group_size=30)
    fsspec.filesystem("memory").pipe("/bucket/a.parquet", sink.getvalue().to_pybytes())
    source = opened(source="memory://bucket/a.parquet", chunk_rows=10)
    assert source.chunks == 10
    assert read_all(source).x[:, 0].tolist() == list(range(100))


def test_without_pyarrow_the_remedy_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"a": [1], "label": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'asyncps\[parquet\]'"):
        opened(source=str(path))


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "true"), (3, "3"), (3.0, "3"), (0.5, "0.5"), ("x", "x")]
)
def test_values_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


MEASURE = """
import re, sys
from pathlib import Path
from psworker.data import open_source
from psworker.job import DataSettings
peak = lambda: int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) // 1024
import pyarrow.parquet
before = peak()
source = open_source(DataSettings(source=sys.argv[1], chunk_rows=10**9), seed=0, holdout=0.0)
rows = sum(len(source.read(chunk, "train")) for chunk in (0, source.chunks - 1))
print(source.chunks, rows, peak() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_row_group_of_800_mb_takes_little_memory(path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [*(f"x{column}" for column in range(19)), "label"]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names])) as writer:
        column = rng.normal(size=5_000_000)  # which Arrow does not copy for each name
        writer.write_table(pa.table(dict.fromkeys(names, column)), row_group_size=5_000_000)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True
    )
    chunks, rows, megabytes = map(int, result.stdout.split())
    assert chunks > 8
    assert rows > 400_000
    assert megabytes < 250


def test_categories_in_many_columns_are_written_out_as_they_are_taken(path: Path) -> None:
    columns = {"n": np.arange(40.0), "c": [f"v{row % 3}" for row in range(40)], "label": np.arange(40.0)}
    source = opened(source=write(path, columns), categorical=("c",), hash_buckets=1 << 20)
    assert source.chunks == 3  # 16 million cells in each
    batch = source.read(1, "train")
    taken = batch.take(np.array([2, 0]))
    assert taken.x.shape == (2, (1 << 20) + 1)
    np.testing.assert_array_equal(taken.x, batch.x[[2, 0]])
    assert [np.count_nonzero(row[1:]) for row in taken.x] == [1, 1]
