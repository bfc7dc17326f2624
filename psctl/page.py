"""One HTML file that needs nothing else to be read: headed boxes with tables and drawings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from protocol import __version__
from protocol.errors import BadRequest
from psctl.figures import printable

__all__ = ["check_place", "figure_of", "page_of", "rows_of", "table_of", "write_page"]

_STYLE: Final = Path(__file__).with_name("page.css")


def page_of(title: str, how: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return the whole page: it asks no server for anything, and runs no script.

    Args:
        title: plain text, as ``how``, the line below it.
        sections: plain heading and HTML of each box.
    """
    boxes = "".join(f"<section><h2>{escape(heading)}</h2>{body}</section>" for heading, body in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(printable(title))}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<h1>{escape(printable(title))}</h1><p>{escape(printable(how))} · asyncps {escape(__version__)}</p>"
        f"<main>{boxes}</main></body></html>\n"
    )


def check_place(directory: Path) -> None:
    """Raise BadRequest for what writing a page there would raise at the end, when all is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK)
    except OSError as error:
        raise BadRequest(
            f"{error.strerror}; give another directory", field="report", value=str(directory)
        ) from error
    if not writable:
        raise BadRequest(
            "it cannot be written to; give another directory", field="report", value=str(directory)
        )


def write_page(file: Path, page: str) -> Path:
    """Write a page, into a directory that is made if it is not there; return ``file``.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    return file


def figure_of(drawn: str, caption: str, keys: str = "") -> str:
    """Return a drawing with what it shows, in plain text, and HTML after that."""
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption>{keys}</figure>"


def table_of(names: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Return a table whose first ``texts`` columns are texts, and the others numbers."""
    kinds = [' class="n"' if number >= texts else "" for number in range(len(names))]

    def line(tag: str, cells: Sequence[str]) -> str:
        made = (f"<{tag}{kind}>{escape(printable(cell))}" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    return f"<table>{line('th', names)}{''.join(line('td', row) for row in rows)}</table>"


def rows_of(rows: Mapping[str, str]) -> str:
    """Return a table of names and values."""
    made = "".join(
        f"<tr><th>{escape(printable(name))}<td>{escape(printable(value))}</tr>"
        for name, value in rows.items()
    )
    return f"<table>{made}</table>"
