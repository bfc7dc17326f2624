import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.messages import Plan
from psctl import cli
from psworker.client import connect
from psworker.job import DataSettings, Job, ModelSettings, StreamSettings, job_to_json
from tests.cluster import Elsewhere, cluster_in_thread

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Elsewhere]:
    with cluster_in_thread() as running:
        yield running


def make(cluster: Elsewhere, name: str, job: Job, **values: Any) -> None:
    """Have a job with such tensors, which a worker has left."""

    async def making() -> None:
        async with connect(cluster.address, name, plan=Plan(job_to_json(job), 1, 1, 0, 0)) as client:
            for tensor, value in values.items():
                await client.create(tensor, np.array(value, np.float32))

    cluster.run(making())


@pytest.fixture(scope="module")
def address(cluster: Elsewhere) -> str:
    data = DataSettings(source="none.csv", columns=("a", "b"), classes=("no", "yes"), target="y")
    make(cluster, "files", Job(ModelSettings("logistic"), data=data), w=[1, -1], b=[0])
    stream = StreamSettings(("-",), format="json")
    data = DataSettings(source="stream", format="csv", columns=("a",), target="y")
    make(cluster, "numbers", Job(ModelSettings("linear"), data=data, stream=stream), w=[0.1], b=[0])
    data = DataSettings(source="none.csv", columns=("a", "b"), on_error="skip")
    make(cluster, "skips", Job(ModelSettings("logistic"), data=data), w=[1, -1], b=[0])
    make(cluster, "empty", Job(ModelSettings("logistic"), data=data))
    return cluster.address


def predicted(address: str, path: Path, text: str, *flags: str) -> int:
    path.write_text(text)
    return cli.main(["predict", "--server", address, "--input", str(path), *flags])


ROWS = "b,y,a\n1,,3\n\n3,what,1\n"


def test_classes_by_their_names(address: str, tmp_path: Path, capfd: Output) -> None:
    assert predicted(address, tmp_path / "new.csv", ROWS, "--job", "files") == 0
    assert capfd.readouterr().out == "yes\nno\n"


def test_probabilities_as_text(address: str, tmp_path: Path, capfd: Output) -> None:
    assert predicted(address, tmp_path / "new.csv", ROWS, "--job", "files", "--probabilities") == 0
    assert capfd.readouterr().out == "yes 0.119203 0.880797\nno 0.880797 0.119203\n"


def test_as_csv_into_a_file(address: str, tmp_path: Path) -> None:
    flags = ("--job", "files", "--format", "csv", "--probabilities", "--output", str(tmp_path / "out.csv"))
    assert predicted(address, tmp_path / "new.csv", ROWS, *flags) == 0
    assert (tmp_path / "out.csv").read_text() == (
        "prediction,p(no),p(yes)\nyes,0.119203,0.880797\nno,0.880797,0.119203\n"
    )


def test_as_json(address: str, tmp_path: Path, capfd: Output) -> None:
    flags = ("--job", "files", "--format", "json", "--probabilities")
    assert predicted(address, tmp_path / "new.csv", ROWS, *flags) == 0
    first, second = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert first == {"prediction": "yes", "probabilities": {"no": 0.119203, "yes": 0.880797}}
    assert second["prediction"] == "no"


def test_numbers_of_rows_in_the_format_of_the_stream(address: str, tmp_path: Path, capfd: Output) -> None:
    assert predicted(address, tmp_path / "new", '{"a": 3}\n{"a": -1, "y": 2}', "--job", "numbers") == 0
    assert capfd.readouterr().out == "0.3\n-0.1\n"
    assert predicted(address, tmp_path / "new", "a\n5\n", "--job", "numbers", "--input-format", "csv") == 0
    assert capfd.readouterr().out == "0.5\n"


def test_more_rows_than_are_looked_at_at_once(address: str, tmp_path: Path, capfd: Output) -> None:
    rows = 30_000
    text = "a\n" + "".join(f"{number % 10}\n" for number in range(rows))
    assert predicted(address, tmp_path / "new", text, "--job", "numbers", "--input-format", "csv") == 0
    found = [float(line) for line in capfd.readouterr().out.splitlines()]
    assert found == [number % 10 / 10 for number in range(rows)]


def test_rows_that_cannot_be_read_have_an_empty_line(address: str, tmp_path: Path, capfd: Output) -> None:
    text = "a,b\n3,1\nx,1\n1\n1,3\n"
    assert predicted(address, tmp_path / "new.csv", text, "--job", "skips") == 0
    output = capfd.readouterr()
    assert output.out == "1\n\n\n0\n"
    first, fields, number = output.err.splitlines()
    assert first == "psctl predict: 2 of 4 rows have no prediction: 1 of fields, 1 of number"
    assert fields.startswith(f"  the first of fields: {tmp_path}/new.csv, line 4: the row has 1 values")
    assert number.startswith(f'  the first of number: {tmp_path}/new.csv, line 3, column "a": "x" is not')


def test_rows_that_cannot_be_read_in_csv(address: str, tmp_path: Path, capfd: Output) -> None:
    """All of the first rows are bad, and yet the header says how many classes there are."""
    text = "a,b\n" + "x,1\n" * 1024 + "3,1\n"
    flags = ("--job", "skips", "--format", "csv", "--probabilities")
    assert predicted(address, tmp_path / "new.csv", text, *flags) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["prediction,p(0),p(1)", *[",,"] * 1024, "1,0.119203,0.880797"]
    assert predicted(address, tmp_path / "new.csv", "a,b\nx,1\n", "--job", "skips", "--format", "csv") == 0
    assert capfd.readouterr().out == 'prediction\n""\n', "an empty field, which a reader does not pass over"


def test_rows_that_cannot_be_read_in_json(address: str, tmp_path: Path, capfd: Output) -> None:
    flags = ("--job", "skips", "--format", "json", "--probabilities")
    assert predicted(address, tmp_path / "new.csv", "a,b\nx,1\n3,1\n", *flags) == 0
    output = capfd.readouterr()
    bad, good = [json.loads(line) for line in output.out.splitlines()]
    error = bad.pop("error")
    assert bad == {"prediction": None, "probabilities": None, "reason": "number"}
    assert error.startswith(f'{tmp_path}/new.csv, line 2, column "a": "x" is not a number')
    assert good == {"prediction": 1, "probabilities": {"0": 0.119203, "1": 0.880797}}
    assert json.loads(output.err) == {
        "rows": 2, "without_prediction": 1, "reasons": {"number": {"rows": 1, "first": error}},
    }  # fmt: skip


def test_what_is_before_an_error_is_predicted(address: str, tmp_path: Path, capfd: Output) -> None:
    assert predicted(address, tmp_path / "new.csv", "a,b\n3,1\n1,3\n1,\n3,1\n", "--job", "files") == 14
    output = capfd.readouterr()
    assert output.out == "yes\nno\n"
    assert output.err.startswith(f'psctl predict: {tmp_path}/new.csv, line 4, column "b": no value')


def test_several_files_of_several_formats(address: str, tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "new.csv.gz").write_bytes(gzip.compress(b"a,b\n3,1\n1,3\n"))
    np.save(tmp_path / "new.npy", [[3.0, 1.0]])
    (tmp_path / "new-1.jsonl").write_text('{"a": 1, "b": 3}\n')
    files = [str(tmp_path / name) for name in ("new.csv.gz", "new.npy", "new-*.jsonl")]
    assert cli.main(["predict", "--server", address, "--job", "files", "--input", *files]) == 0
    assert capfd.readouterr().out == "yes\nno\nyes\nno\n"


def test_an_output_is_left_alone_where_there_is_nothing_to_write(address: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    flags = ("--job", "none", "--output", str(tmp_path / "out"))
    assert predicted(address, tmp_path / "new.csv", ROWS, *flags) == 12
    assert (tmp_path / "out").read_text() == "precious"


def test_an_output_that_cannot_be_written(address: str, tmp_path: Path, capfd: Output) -> None:
    flags = ("--job", "files", "--output", str(tmp_path / "none" / "out"))
    assert predicted(address, tmp_path / "new.csv", ROWS, *flags) == 14
    assert "none/out: No such file or directory; correct the name" in capfd.readouterr().err
    assert predicted(address, tmp_path / "new.csv", ROWS, "--job", "files", "--output", "/dev/full") == 14
    assert "/dev/full: No space left on device" in capfd.readouterr().err


def test_no_rows(address: str, tmp_path: Path, capfd: Output) -> None:
    for text in ("", "a,b\n"):
        assert predicted(address, tmp_path / "new.csv", text, "--job", "files") == 0
        assert capfd.readouterr().out == ""
        flags = ("--job", "files", "--format", "csv", "--probabilities")
        assert predicted(address, tmp_path / "new.csv", text, *flags) == 0
        assert capfd.readouterr().out == "prediction,p(no),p(yes)\n"


@pytest.mark.parametrize(
    ("text", "flags", "code", "reason"),
    [
        ("a\n1\n", ["--job", "files"], 14, 'no column "b", which [data] columns names'),
        ("a,b\n1,x\n", ["--job", "files"], 14, '"x" is not a number'),
        ("a,b\n1,2\n", [], 12, "the cluster has several jobs: say which with --job NAME"),
        ("a,b\n1,2\n", ["--job", "other"], 12, "no worker has made a job of that name; psctl status shows"),
        (
            "a,b\n1,2\n",
            ["--job", "empty"],
            12,
            "its model has no parameters yet: no worker has made them; ask",
        ),
        ("a,b\n1,2\n", ["--job", "none.toml"], 2, "cannot read the job file none.toml"),
        ('{"a": 1}\n', ["--job", "numbers", "--probabilities"], 2, "no method probabilities"),
    ],
)
def test_what_cannot_be_predicted(
    address: str, tmp_path: Path, capfd: Output, text: str, flags: list[str], code: int, reason: str
) -> None:
    assert predicted(address, tmp_path / "new", text, *flags) == code
    error = capfd.readouterr().err
    assert error.startswith("psctl predict: ")
    assert reason in error


def test_an_input_that_is_not_there(address: str, tmp_path: Path, capfd: Output) -> None:
    assert (
        cli.main(["predict", "--server", address, "--job", "files", "--input", str(tmp_path / "none")]) == 14
    )
    assert "No such file or directory" in capfd.readouterr().err


def test_a_cluster_without_jobs(tmp_path: Path, capfd: Output) -> None:
    with cluster_in_thread() as cluster:
        assert predicted(cluster.address, tmp_path / "new", "a\n1\n") == 12
    assert "the cluster has no job yet: train one (psworker --job FILE)" in capfd.readouterr().err


def test_nobody_answers(tmp_path: Path, capfd: Output) -> None:
    assert predicted("127.0.0.1:9", tmp_path / "new", "a\n1\n") == 10
