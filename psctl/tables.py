"""Tables as every command draws them."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from psctl.figures import printable

__all__ = ["add", "indented", "table"]


def table(*columns: str) -> Table:
    """Return a table; ``<`` and ``>`` before a column's name say where it is aligned.

    What is aligned to the right are figures: where there is no room, the texts beside them are folded.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    for column in columns:
        if column[0] == ">":
            drawn.add_column(column[1:], justify="right", no_wrap=True, overflow="ellipsis")
        else:
            drawn.add_column(column[1:], overflow="fold")
    return drawn


def add(drawn: Table, *cells: str | Text, style: str = "") -> None:
    """Add a row; in texts, what a terminal might obey is escaped."""
    row = (cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells)
    drawn.add_row(*row, style=style)


def indented(content: RenderableType) -> Padding:
    """Return what is drawn a little to the right."""
    return Padding(content, (0, 0, 0, 2), expand=False)
