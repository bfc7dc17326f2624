"""What is wrong with a number written as text; asked only once a fast parser has refused it."""

import math
import re
from typing import Final

import numpy as np

_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d+,\d+")


def number_fault(text: str) -> str | None:
    """What keeps `text` from being a finite float32, as the end of a sentence; None if it is one.

    As strict as np.loadtxt: no digit groups ("1_000"), no digits of other scripts.
    """
    try:
        number = float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        number = None
    if number is None:
        return "is not a number" + (": write a decimal point" if _DECIMAL_COMMA.fullmatch(text) else "")
    if not math.isfinite(number):
        return "is not finite"
    return None if abs(number) <= float(np.finfo(np.float32).max) else "is too large for float32"
