"""The pictures for the docs can be made again."""

from pathlib import Path

import pytest

from benchmarks.browser import missing
from benchmarks.screenshots import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
@pytest.mark.skipif(bool(missing()), reason=missing() or "all is here")
def test_the_pictures_are_made(tmp_path: Path) -> None:
    assert main(["--into", str(tmp_path / "images"), "--at", "0.01"]) == 0
    pictures = sorted((tmp_path / "images").iterdir())
    assert [picture.name for picture in pictures] == ["status-page-dark.png", "status-page.png", "top.png"]
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 10_000


def test_without_a_browser_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.screenshots.missing", lambda: "no Chromium is here")
    assert main([]) == 2
    assert capsys.readouterr().err == "screenshots: no Chromium is here\n"
