"""Which part of the data a row belongs to where a column decides it: rows of one value are of one part."""

import zlib


def part_of(value: str, parts: int) -> int:
    """The part, from 0 to `parts` - 1, of the rows with this `value`: CRC-32 of its UTF-8, modulo `parts`.

    It is the same on every machine and in every process, which Python's own hash of a text is not.
    """
    return zlib.crc32(value.encode()) % parts
