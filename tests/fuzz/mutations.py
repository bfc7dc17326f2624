"""Changes to bytes that tell parsers apart that believe from those that look."""

import random
from collections.abc import Sequence
from typing import Final

_TELLING: Final = (
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7), b"\xcb\x7f\xf8" + bytes(6), b"\xc0", b"\xc3", b"\xc4\x01x", b"\xc7\x01\x05x",
    b"\x91" * 100, b"\xa0", b"\x80", b"\xff" * 8, bytes(8), b"-1", b"1e999", b"null", b"[[[[", b'{"a":',
    b"\xa2id", b"\xa2op",
)  # fmt: skip


def mutated(numbers: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of ``seeds`` in which up to four things have been changed."""
    data = bytearray(numbers.choice(seeds))
    for _ in range(numbers.randrange(1, 5)):
        at = numbers.randrange(len(data) + 1)
        match numbers.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << numbers.randrange(8)
            case 1:
                data[at : at + numbers.randrange(1, 9)] = numbers.choice(_TELLING)
            case 2:
                data[at:at] = numbers.choice(_TELLING)
            case 3:
                del data[at : at + numbers.choice([1, 4, 1000])]
            case 4:
                data[at:at] = data[: numbers.randrange(64)]
            case _:
                data[at:] = numbers.choice(seeds)[at:]
    return bytes(data)
