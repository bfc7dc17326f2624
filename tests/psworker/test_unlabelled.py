import bz2
import gzip
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from psworker.data import open_source
from psworker.data.survey import Adjustment
from psworker.errors import DataError, JobError
from psworker.job import DataSettings
from psworker.unlabelled import MOST, Piece, Trained, read_unlabelled
from tests.psworker.data.reading import by_key

DATA = DataSettings(source="train.csv", target="y", columns=("a", "b"))
SKIPS = replace(DATA, on_error="skip")


def pieces(path: Path, data: DataSettings = DATA, form: str | None = None, **trained: Any) -> list[Piece]:
    return list(read_unlabelled(Trained(data, **trained), str(path), form))


def rows(path: Path, data: DataSettings = DATA, form: str | None = None, **trained: Any) -> list[list[float]]:
    found = pieces(path, data, form, **trained)
    assert not any(piece.lost for piece in found)
    return [row for piece in found for row in piece.batch.x.tolist()]


def floats(*numbers: float) -> npt.NDArray[np.float32]:
    return np.array(numbers, np.float32)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@contextmanager
def standard_input(text: bytes) -> Iterator[None]:
    """Have the file descriptor 0 be a pipe with this text in it, and no more."""
    before = os.dup(0)
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    os.dup2(read, 0)
    os.close(read)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


# --- formats


@pytest.mark.parametrize(
    "text",
    ["b,a\n1,2\n3,4\n", "b,y,a\n1,,2\n\n3,cow,4", "y;b;a\r\n;1;2\r\n;3;4\r\n", "\ufeffb\ta\n1\t2\n3\t4\n"],
)
def test_columns_of_csv_are_found_by_the_header_and_no_label_is_needed(tmp_path: Path, text: str) -> None:
    assert rows(write(tmp_path / "new.csv", text)) == [[2, 1], [4, 3]]


@pytest.mark.parametrize("name", ["new.json", "new.jsonl", "new.ndjson", "new.jsonl.gz"])
def test_objects(tmp_path: Path, name: str) -> None:
    text = '{"b": 1, "a": "2", "c": [1]}\n\n{"y": "cow", "a": 4.5, "b": true}'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert rows(path) == [[2, 1], [4.5, 1]]


def test_libsvm_with_labels_and_without(tmp_path: Path) -> None:
    data = DataSettings(source="train.libsvm", dimensions=3)
    path = write(tmp_path / "new.svm", "cow 1:2 3:4\n2:1 # who knows\n-1\n")
    assert rows(path, data) == [[2, 0, 4], [0, 1, 0], [0, 0, 0]]
    hashed = pieces(path, replace(data, dimensions=None, hashed=True))
    assert by_key(hashed[0].batch) == [{1: 2, 3: 4}, {2: 1}, {}]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"b": range(3000), "note": ["x"] * 3000, "a": np.arange(3000) / 2})
    parquet.write_table(table, tmp_path / "new.parquet", row_group_size=2900)
    found = rows(tmp_path / "new.parquet")
    assert found == [[number / 2, number] for number in range(3000)]


def test_arrays(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        assert rows(tmp_path / name) == x.tolist()
    unnamed = DataSettings(source="x.npy", target="y.npy", hashed=True)
    np.save(tmp_path / "y.npy", np.zeros(3))
    trained_on = replace(unnamed, source=str(tmp_path / "x.npy"), target=str(tmp_path / "y.npy"))
    expected = open_source(trained_on, seed=0, holdout=0.0).read(0, "train")
    assert by_key(pieces(tmp_path / "x.npy", unnamed)[0].batch) == by_key(expected)


def test_features_are_those_of_training(tmp_path: Path) -> None:
    """Numbers, categories and words, dense and hashed, of CSV, JSON and Parquet."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = {"a": [1.5, 2.0], "city": ["Rome", ""], "query": ["red shoes", "shoes, shoes"]}
    write(tmp_path / "train.csv", 'a,city,query,y\n1.5,Rome,red shoes,no\n2,,"shoes, shoes",yes\n')
    write(tmp_path / "new.csv", 'query,a,city\nred shoes,1.5,Rome\n"shoes, shoes",2,\n')
    write(
        tmp_path / "new.json",
        '{"a": 1.5, "city": "Rome", "query": "red shoes"}\n{"a": 2, "query": "shoes, shoes"}\n',
    )
    parquet.write_table(pa.table(texts), tmp_path / "new.parquet")
    data = DataSettings(
        source=str(tmp_path / "train.csv"), target="y", classes=("no", "yes"), categorical=("city",),
        text=("query",), hash_buckets=8, partition="hash:city",
    )  # fmt: skip
    for hashed in (False, True):
        trained = open_source(replace(data, hashed=hashed), seed=0, holdout=0.0).read(0, "train")
        told = replace(data, hashed=hashed, columns=("a", "city", "query"))
        for name in ("new.csv", "new.json", "new.parquet"):
            (piece,) = pieces(tmp_path / name, told)
            assert not piece.lost
            if hashed:
                assert by_key(piece.batch) == by_key(trained)
            else:
                assert piece.batch.x.tolist() == trained.x.tolist()


def test_the_format_is_that_of_the_name_or_of_the_job_or_as_is_said(tmp_path: Path) -> None:
    as_json = write(tmp_path / "new.txt", '{"a": 1, "b": 2}\n')
    assert rows(as_json, form="json") == [[1, 2]]
    of_job = Trained(DATA, form="json")
    assert next(read_unlabelled(of_job, str(as_json))).batch.x.tolist() == [[1, 2]]
    as_csv = write(tmp_path / "new.csv", "a,b\n1,2\n")
    assert next(read_unlabelled(of_job, str(as_csv))).batch.x.tolist() == [[1, 2]]


# --- where rows are


@pytest.mark.parametrize(
    ("end", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_files_are_unpacked_on_the_way(tmp_path: Path, end: str, pack: Any) -> None:
    path = tmp_path / f"new.csv{end}"
    path.write_bytes(pack(b"a,b\n" + b"1,2\n" * 20_000))
    assert rows(path) == [[1, 2]] * 20_000
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"cannot be unpacked .* whole {end} file"):
        pieces(path)


def test_several_files_and_patterns_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "part-1.csv", "a,b\n1,1\n")
    write(tmp_path / "part-2.csv", "b,a\n2,3\n")
    write(tmp_path / "last.jsonl", '{"a": 4, "b": 4}\n')
    places = [str(tmp_path / "part-*.csv"), str(tmp_path / "last.jsonl")]
    found = list(read_unlabelled(Trained(DATA), places))
    assert [piece.batch.x.tolist() for piece in found] == [[[1, 1]], [[3, 2]], [[4, 4]]]
    with pytest.raises(DataError, match="no file has such a name"):
        pieces(tmp_path / "no-*.csv")
    with pytest.raises(DataError, match="No such file or directory"):
        pieces(tmp_path / "no.csv")


def test_object_stores() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/predicted/new-1.csv.gz", gzip.compress(b"a,b\n1,2\n"))
    files.pipe("/predicted/new-2.csv", b"a,b\n3,4\n")
    found = read_unlabelled(Trained(DATA), "memory://predicted/new-*")
    assert [piece.batch.x.tolist() for piece in found] == [[[1, 2]], [[3, 4]]]


def test_standard_input() -> None:
    with standard_input(b"a,b\n1,2\n3,x\n"):
        (piece,) = read_unlabelled(Trained(SKIPS), "-")
    assert piece.batch.x.tolist() == [[1, 2]]
    assert str(piece.lost[1].error).startswith('standard input, line 3, column "b": "x" is not a number')
    with standard_input(b""), pytest.raises(DataError, match="standard input: parquet is no format of lines"):
        list(read_unlabelled(Trained(DATA), "-", "parquet"))


def test_a_pipe_with_a_name_gives_rows_as_they_come(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Opened for both, it waits for nobody.
    with open(tmp_path / "pipe", "r+b", buffering=0) as pipe:
        pipe.write(b"a,b\n1,2\n")
        found = read_unlabelled(Trained(DATA), str(tmp_path / "pipe"))
        assert next(found).batch.x.tolist() == [[1, 2]]
        pipe.write(b"3,4\n")
        assert next(found).batch.x.tolist() == [[3, 4]]


def test_there_are_never_many_rows_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", "a,b\n" + "1,2\n" * 5000)
    found = pieces(path)
    assert sum(map(len, found)) == 5000
    assert max(map(len, found)) <= MOST


# --- rows that cannot be read


BAD: dict[str, tuple[str, list[tuple[int, str, str]]]] = {
    "new.csv": (
        "a,b\n1,2\n\nx,2\n3\n,5\n5,6\n",
        [
            (1, "number", 'new.csv, line 4, column "a": "x" is not a number'),
            (2, "fields", "new.csv, line 5: the row has 1 values, the header 2"),
            (3, "missing", 'new.csv, line 6, column "a": no value'),
        ],
    ),
    "new.json": (
        '{"a": 1, "b": 2}\n{"a":\n[1]\n{"b": 1}\n{"a": 5, "b": 6}\n',
        [
            (1, "fields", "new.json, line 2: not JSON"),
            (2, "fields", "new.json, line 3: not a JSON object"),
            (3, "missing", 'new.json, line 4, column "a": no value'),
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_cannot_be_read_have_their_place_and_their_line(tmp_path: Path, name: str) -> None:
    text, expected = BAD[name]
    (piece,) = pieces(write(tmp_path / name, text), SKIPS)
    assert piece.batch.x.tolist() == [[1, 2], [5, 6]]
    assert len(piece) == 5
    for (place, lost), (at, kind, error) in zip(piece.lost.items(), expected, strict=True):
        assert (place, lost.kind) == (at, kind)
        assert str(lost.error).startswith(f"{tmp_path}/{error}")


@pytest.mark.parametrize("name", BAD)
def test_where_they_are_not_left_out_those_before_are_given_out_and_then_the_error(
    tmp_path: Path, name: str
) -> None:
    text, expected = BAD[name]
    found = read_unlabelled(Trained(DATA), str(write(tmp_path / name, text)))
    assert next(found).batch.x.tolist() == [[1, 2]]
    with pytest.raises(DataError) as caught:
        next(found)
    assert str(caught.value).startswith(f"{tmp_path}/{expected[0][2]}")


def test_rows_of_parquet_are_named_by_their_number_in_the_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    a = np.arange(3000.0)
    a[[5, 2500]] = np.inf
    table = pa.table({"a": a, "b": [None if number == 1023 else 1 for number in range(3000)]})
    parquet.write_table(table, tmp_path / "new.parquet")
    found = pieces(tmp_path / "new.parquet", SKIPS)
    begins = np.cumsum([0, *map(len, found)])
    lost = [
        (int(begin) + place, str(one.error).partition(": ")[0])
        for begin, piece in zip(begins, found, strict=False)
        for place, one in piece.lost.items()
    ]
    path = tmp_path / "new.parquet"
    assert lost == [
        (5, f'{path}, row 6, column "a"'),
        (1023, f'{path}, row 1024, column "b"'),
        (2500, f'{path}, row 2501, column "a"'),
    ]
    assert begins[-1] == 3000


def test_libsvm_that_is_none(tmp_path: Path) -> None:
    data = DataSettings(source="train.libsvm", dimensions=2, on_error="skip")
    (piece,) = pieces(write(tmp_path / "new.libsvm", "1:1\n1:1 3:1\n2:1 1:1\n0 2:x\n"), data)
    assert piece.batch.x.tolist() == [[1, 0]]
    assert [(place, one.kind) for place, one in piece.lost.items()] == [
        (1, "entry"),
        (2, "entry"),
        (3, "number"),
    ]


def test_a_number_that_is_missing_is_filled_or_left_out_as_in_training(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", "a,b\n,2\n3,4\n")
    assert rows(path, replace(DATA, missing="zero")) == [[0, 2], [3, 4]]
    (piece,) = pieces(path, replace(DATA, missing="skip"))
    assert list(piece.lost) == [0]
    surveyed = Adjustment(floats(7, 8), floats(1, 2), floats(2, 1))
    assert rows(path, replace(DATA, missing="mean"), adjustment=surveyed) == [[12, 0], [4, 2]]


def test_text_that_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_bytes(b"a,b\n\xff,1\n1,2\n")
    (piece,) = pieces(tmp_path / "new.csv", SKIPS)
    assert [(place, one.kind) for place, one in piece.lost.items()] == [(0, "encoding")]
    (tmp_path / "new.csv").write_bytes(b"a,b,\xff\n1,2,3\n")
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        pieces(tmp_path / "new.csv")


# --- a header or none


@pytest.mark.parametrize("text", ["1,2\n", "1,2,\n", "1,2,cow\n", "a,b,y\n1,2,0\n", "b,a\n2,1\n"])
def test_fields_where_the_stream_has_no_header(tmp_path: Path, text: str) -> None:
    fields = ("a", "b", "y")
    assert rows(write(tmp_path / "new.csv", text), fields=fields) == [[1, 2]]


# --- what does not go together


@pytest.mark.parametrize(
    ("name", "content", "data", "error", "reason"),
    [
        ("new.csv", "a\n1\n", DATA, DataError, 'line 1: no column "b", which [data] columns names'),
        ("new.csv", "a,a,b\n1,1,1\n", DATA, DataError, 'two columns are named "a"'),
        ("new.svm", "1:1\n", DATA, JobError, "the job's features have names, and libsvm's have none"),
        (
            "new.svm",
            "1:1\n",
            DataSettings(source="x.npy"),
            JobError,
            "the job was not trained on libsvm",
        ),
        (
            "new.json",
            "{}",
            DataSettings(source="x.svm"),
            JobError,
            "the job's features have no names, and JSON's have",
        ),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, name: str, content: str, data: DataSettings, error: type[Exception], reason: str
) -> None:
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    for path in (write(tmp_path / name, content), packed):
        with pytest.raises(error) as caught:
            pieces(path, data)
        assert reason in str(caught.value)
        assert "cannot be unpacked" not in str(caught.value)


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match="rows of 3 numbers; expected 2: a, b"):
        pieces(tmp_path / "x.npy")
    with pytest.raises(JobError, match="npy has numbers only, and the job has texts"):
        pieces(tmp_path / "x.npy", replace(DATA, text=("b",)))
    surveyed = Adjustment(None, floats(1, 2), floats(2, 1))
    with pytest.raises(DataError, match="has 3 columns of numbers, and the job was trained on 2"):
        pieces(tmp_path / "x.npy", DataSettings(source="x.npy"), adjustment=surveyed)
