"""What the documentation says, by its headings."""

from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs"


def chapter(document: str, title: str) -> str:
    """Return the text under a heading of the second level."""
    text = (_DOCS / document).read_text()
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
