import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from psctl import cli
from psctl.contents import Found, Inspection, Problem, contents
from psctl.inspect import inspect
from psserver.durability.checkpoint import newest_usable, prune
from psserver.durability.storage import LocalStorage
from tests.psserver.durability.made_up import write

Output = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Checkpoints 1 and 2, and 3 that was never completed."""
    storage = LocalStorage(tmp_path / "checkpoints")
    for number in (1, 2):
        write(storage, number)
    storage.create("checkpoint-00000003/shard-0.safetensors").close()
    (tmp_path / "checkpoints/log").mkdir()
    return tmp_path / "checkpoints"


def damage(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rows(text: str) -> list[list[str]]:
    """Return the table of all checkpoints."""
    lines = text.splitlines()
    return [line.split() for line in lines[2 : lines.index("")]]


def drawn(inspection: Inspection, *, width: int = 100, alone: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(contents(inspection, alone=alone))
    return captured.get()


def test_all_checkpoints_and_the_newest_in_detail(place: Path, capsys: Output) -> None:
    assert cli.main(["inspect", str(place)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"3 checkpoints in {place}\n")
    taken = ["2026-05-01", "12:00:00+00:00", "2", "3", "2"]
    assert [(row[0], row[1:6], row[-1]) for row in rows(out)] == [
        ("1", taken, "sound"),
        ("2", taken, "sound"),
        ("3", ["-"] * 5, "incomplete"),
    ]
    for fact in (
        "\ncheckpoint 2, taken 2026-05-01 12:00:00+00:00 by asyncps 0.1.0\n",
        "  cluster cluster-1, timeline 2, 3 shards, 2 jobs, ",
        "\njob digits\n  stale by at most 2 steps (staleness 2), step 2, 14 updates, ",
        "14 updates, 372 B of dense parameters\n",
        "  w       float32  13 x 7  sgd lr=0.25  364 B       3\n",
        "  b       float64  scalar  sgd lr=0.25    8 B       1\n",
        "\njob other\n",
        "\nsound: 8 files, every checksum right\n",
    ):
        assert fact in out
    assert "digits" not in out[: out.index("checkpoint 2,")]


@pytest.mark.parametrize("number", [1, 2])
def test_one_checkpoint(place: Path, number: int, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / f"checkpoint-0000000{number}")
    for named in (
        f"{place}/checkpoint-0000000{number}",
        f"{place}/checkpoint-0000000{number}/",
        ".",
        f"../checkpoint-0000000{number}",
    ):
        assert cli.main(["inspect", named]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"checkpoint {number}, taken ")
        assert out.endswith("\nsound: 8 files, every checksum right\n")


def test_a_damaged_one_is_told_by_file_and_so_is_where_to_go_on_from(place: Path, capsys: Output) -> None:
    damage(place / "checkpoint-00000002/shard-1.safetensors")
    damage(place / "checkpoint-00000002/coordinator.json")
    assert cli.main(["inspect", str(place)]) == 13
    out = capsys.readouterr().out
    assert rows(out)[1][-3:] == ["damaged,", "2", "problems"]
    assert "\ncheckpoint 2 is damaged: 2 problems\n" in out
    for name in ("shard-1.safetensors: other/w, 4 bytes at offset ", "coordinator.json: its checksum is "):
        assert f"\n  checkpoint-00000002/{name}" in out
    assert out.endswith("\ncheckpoint 1 is the newest that is sound\n")
    assert "sound: " not in out
    assert cli.main(["inspect", f"{place}/checkpoint-00000002"]) == 13
    assert cli.main(["inspect", f"{place}/checkpoint-00000001"]) == 0


def test_an_old_one_that_is_damaged_is_told_and_no_reason_to_worry(place: Path, capsys: Output) -> None:
    damage(place / "checkpoint-00000001/shard-1.json")
    assert cli.main(["inspect", str(place)]) == 0
    out = capsys.readouterr().out
    assert rows(out)[0][-3:] == ["damaged,", "1", "problem"]
    assert out.endswith("\nsound: 8 files, every checksum right\n")


def test_a_manifest_that_is_damaged(place: Path, capsys: Output) -> None:
    damage(place / "checkpoint-00000002/manifest.json", at=30)
    assert cli.main(["inspect", f"{place}/checkpoint-00000002"]) == 13
    out = capsys.readouterr().out
    assert out.startswith(
        "checkpoint 2 is damaged: 1 problem\n  checkpoint-00000002/manifest.json: its checksum is "
    )


def test_where_there_is_none(tmp_path: Path, capsys: Output) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 13
    assert "there is no complete checkpoint" in capsys.readouterr().out
    (tmp_path / "checkpoint-00000001").mkdir()
    assert cli.main(["inspect", f"{tmp_path}/checkpoint-00000001"]) == 13
    assert capsys.readouterr().out == "there is no complete checkpoint\n"
    assert cli.main(["inspect", str(tmp_path), "--format", "json"]) == 13
    assert json.loads(capsys.readouterr().out)["usable"] is None


@pytest.mark.parametrize("name", ["nowhere", "checkpoint-00000009", "a-file", "s3://", "s 3://bucket"])
def test_a_path_that_is_not_there(tmp_path: Path, name: str, capsys: Output) -> None:
    (tmp_path / "a-file").touch()
    assert cli.main(["inspect", name if "://" in name else str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("psctl inspect: ")
    assert name in err


def test_a_storage_that_cannot_be_read(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def refuse(self: LocalStorage, path: str) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(LocalStorage, "size", refuse)
    assert cli.main(["inspect", str(place)]) == 1
    assert "Permission denied: 'checkpoint-00000001/manifest.json'" in capsys.readouterr().err


def test_json_is_one_object(place: Path, capsys: Output) -> None:
    damage(place / "checkpoint-00000001/shard-1.json")
    assert cli.main(["inspect", str(place), "--format", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found.keys() == {"place", "checkpoints", "usable"}
    assert (found["place"], found["usable"]) == (str(place), 2)
    damaged, sound, incomplete = found["checkpoints"]
    assert damaged["problems"][0]["file"] == "checkpoint-00000001/shard-1.json"
    assert [one["state"] for one in found["checkpoints"]] == ["damaged", "sound", "incomplete"]
    assert (incomplete["checkpoint"], incomplete["manifest"]) == (3, None)
    manifest = sound["manifest"]
    assert manifest["header"] == {"checkpoint": 2, "shards": 3, "cluster": "cluster-1", "timeline": 2}
    assert manifest["jobs"][0]["tensors"][1]["spec"]["shape"] == []
    assert damaged["manifest"]["jobs"][0]["staleness"] == "inf"


def test_the_part_of_a_server_with_a_disk_of_its_own(place: Path, capsys: Output) -> None:
    for path in (place / "checkpoint-00000002").glob("shard-[02].*"):
        path.unlink()
    (place / "checkpoint-00000002/coordinator.json").unlink()
    assert cli.main(["inspect", str(place), "--shard", "1"]) == 0
    assert capsys.readouterr().out.endswith("\nsound: 3 files, every checksum right\n")
    assert cli.main(["inspect", str(place), "--shard", "1", "--shard", "2"]) == 13
    assert "shard-2.json: it is missing" in capsys.readouterr().out
    assert cli.main(["inspect", str(place), "--shard", "7"]) == 13
    assert "it is of 3, there is no shard 7" in capsys.readouterr().out


def test_what_servers_would_go_on_from_is_what_is_shown_as_usable(place: Path) -> None:
    storage = LocalStorage(place)
    damage(place / "checkpoint-00000002/shard-0.json")
    newest = newest_usable(storage, report=lambda _: None)
    assert newest is not None
    assert inspect(storage).usable == newest.header.checkpoint == 1


def test_a_checkpoint_that_a_server_removes_meanwhile_is_not_damaged(place: Path) -> None:
    storage = LocalStorage(place)

    def remove(_: int) -> None:
        prune(storage, 1)

    found = inspect(storage, expect=remove)
    assert [one.state for one in found.checkpoints] == ["incomplete", "sound", "incomplete"]


def test_progress_is_told(place: Path) -> None:
    storage, expected, read = LocalStorage(place), list[int](), list[int]()
    found = inspect(storage, expect=expected.append, progress=read.append)
    manifests = [one.manifest for one in found.checkpoints if one.manifest]
    assert expected == [sum(manifest.nbytes for manifest in manifests)]
    assert 0 < sum(read) < expected[0]


def test_symbolic_links_are_followed(place: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "newest").symlink_to(place / "checkpoint-00000002")
    assert cli.main(["inspect", str(tmp_path / "newest")]) == 0
    assert capsys.readouterr().out.startswith("checkpoint 2, taken ")
    shutil.rmtree(place)
    assert cli.main(["inspect", str(tmp_path / "newest")]) == 2


def test_an_empty_job_and_a_narrow_screen(place: Path) -> None:
    found = inspect(LocalStorage(place), 2)
    manifest = found.checkpoints[0].manifest
    assert manifest is not None
    bare = replace(manifest, jobs=(replace(manifest.jobs[0], tensors=()),))
    text = drawn(replace(found, checkpoints=(replace(found.checkpoints[0], manifest=bare),)), width=60)
    assert "0 B of dense parameters" in " ".join(text.split())
    assert "dtype" not in text
    assert all(len(line) <= 60 for line in text.splitlines())


def test_texts_of_files_are_neither_markup_nor_control() -> None:
    evil = "[bold]\x1b[2J"
    problems = (Problem(evil, evil),)
    text = drawn(Inspection(evil, (Found(1, "damaged", 1, problems, None),), None))
    assert text.count("[bold]\\x1b[2J") == 3
    assert "\x1b" not in text
