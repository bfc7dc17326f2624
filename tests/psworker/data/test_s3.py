"""Files in an object store that is asked over HTTP; `test_files` has those in memory."""

import gzip
import io
import re

import numpy as np
import pytest

from psworker.data import Source
from psworker.errors import DataError
from tests.psworker.data.reading import opened, read_all
from tests.s3 import S3

pytestmark = pytest.mark.xdist_group("s3")  # one server for all

ROWS = 3000
NO_BUCKET = "No such file or directory, or no such bucket; correct the name or the file"


@pytest.fixture
def bucket(s3: S3) -> str:
    return s3.new_bucket()


def text(first: int, count: int) -> bytes:
    return b"a,label\n" + b"".join(b"%d,%d\n" % (row, row % 3) for row in range(first, first + count))


def test_files_of_a_pattern_are_one_table(s3: S3, bucket: str) -> None:
    for part in range(3):
        s3.put(bucket, f"day/part-{part}.csv", text(part * ROWS, ROWS))
        s3.put(bucket, f"packed/part-{part}.csv.gz", gzip.compress(text(part * ROWS, ROWS)))
    s3.put(bucket, "day/other.csv", b"nothing of it")
    for pattern in ("day/part-*.csv", "packed/*.csv.gz"):
        source = opened(source=f"s3://{bucket}/{pattern}")
        assert source.chunks > 3
        np.testing.assert_array_equal(read_all(source).x[:, 0], np.arange(3 * ROWS))


def test_a_bad_row_is_named(s3: S3, bucket: str) -> None:
    s3.put(bucket, "a.csv", text(0, ROWS) + b"x,1\n")
    with pytest.raises(DataError) as caught:
        read_all(opened(source=f"s3://{bucket}/a.csv"))
    assert str(caught.value).startswith(f's3://{bucket}/a.csv, line {ROWS + 2}, column "a": "x" is not')


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each range that was asked for."""
    core = pytest.importorskip("s3fs.core")
    fetch, sizes = core.S3File._fetch_range, []

    def counted(file: object, start: int, end: int) -> bytes:
        found: bytes = fetch(file, start, end)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(core.S3File, "_fetch_range", counted)
    return sizes


def read_some(source: Source, received: list[int]) -> int:
    """Return how many bytes it takes to read a chunk from the middle."""
    received.clear()
    assert len(source.read(source.chunks // 2, "train"))
    return sum(received)


def test_only_what_a_chunk_needs_is_asked_for(s3: S3, bucket: str, received: list[int]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng, packed = np.random.default_rng(0), io.BytesIO()
    table = pa.table({f"x{number}": rng.random(100_000, np.float32) for number in range(12)})
    parquet.write_table(table, packed, row_group_size=20_000, compression="none", use_dictionary=False)
    s3.put(bucket, "a.parquet", packed.getvalue())  # 5 times 1 MB
    two = opened(source=f"s3://{bucket}/a.parquet", columns=("x3",), target="x9", chunk_rows=20_000)
    assert sum(received) < 200_000  # the footer
    assert 160_000 <= read_some(two, received) < 600_000
    s3.put(bucket, "a.csv", text(0, 300_000))  # 2.4 MB
    assert read_some(opened(source=f"s3://{bucket}/a.csv"), received) < 300_000


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("none.csv", NO_BUCKET),
        ("none.parquet", NO_BUCKET),
        ("none-*.csv", "no file has such a name; correct the pattern"),
    ],
)
def test_what_is_not_there(bucket: str, place: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"s3://{bucket}/{place}: {reason}")):
        opened(source=f"s3://{bucket}/{place}")
    with pytest.raises(DataError, match=re.escape(f"s3://no-such-bucket/{place}: {NO_BUCKET}")):
        opened(source=f"s3://no-such-bucket/{place}")


def test_credentials_that_are_not_there(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put(bucket, "a.csv", text(0, 1))
    drivers = type(pytest.importorskip("fsspec").filesystem("s3"))
    drivers.clear_instance_cache()  # of those who have had some
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("a.csv", "*.csv"):
        with pytest.raises(DataError, match=r"NoCredentialsError: .*; give credentials .* AWS_ACCESS_KEY_ID"):
            opened(source=f"s3://{bucket}/{name}")
    drivers.clear_instance_cache()  # of those who have none
