"""Plain text in aligned columns."""

from collections.abc import Sequence


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return `lines` of equally many cells: the first column to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
