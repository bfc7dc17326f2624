import pytest

from benchmarks.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("100MB", 100_000_000), ("1 KB", 1000), ("64KiB", 65_536), ("4B", 4), ("1GiB", 2**30)],
)
def test_parse(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "1", "MB", "-1MB", "1.5MB", "1mb", "0KB", "6B", "1TB"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"size '{text}'"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(100_000_000, "100 MB"), (1000, "1 KB"), (65_536, "65536 B"), (2 * 10**9, "2 GB")],
)
def test_format(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text
