"""Pages of docs/ whose figures a benchmark writes anew, between two marks."""

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def with_figures(page: str, measured: str) -> str:
    """Return `page` with what is between its two marks replaced.

    Raises ValueError where it has not got both marks, in their order.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"page: expected {_BEGIN} and, after it, {_END} of what was measured")
    return f"{before}{_BEGIN}\n{measured}\n{_END}{after}"
