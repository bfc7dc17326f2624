"""Sizes as people write them: decimal `100MB`, `1KB`, or binary `64KiB`."""

import re

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_DECIMAL = ("GB", "MB", "KB", "B")


def parse_size(text: str) -> int:
    """Return the bytes of a float32 tensor of size `text`.

    Raises ValueError where it is no size, or not a positive multiple of 4 bytes.
    """
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]+)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"size {text!r}: write a whole number and one of {', '.join(_UNITS)}")
    nbytes = int(match[1]) * _UNITS[match[2]]
    if nbytes == 0 or nbytes % 4:
        raise ValueError(f"size {text!r}: float32 tensors need a positive multiple of 4 bytes")
    return nbytes


def format_size(nbytes: int) -> str:
    """Return `nbytes` in the largest decimal unit that divides it, e.g. `100 MB`."""
    unit = next(unit for unit in _DECIMAL if nbytes % _UNITS[unit] == 0)
    return f"{nbytes // _UNITS[unit]} {unit}"
