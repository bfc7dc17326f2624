"""The report of the sparse benchmark as a table for people or as JSON."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks.columns import align
from benchmarks.sparse_rounds import Report, Row
from benchmarks.sparse_systems.registry import CEILING
from benchmarks.summary import speed_ratios, summarize
from benchmarks.systems.interface import OPERATIONS, Operation

TARGET_RATIOS: dict[Operation, float] = {"push": 0.1, "pull": 0.25}
"""How fast this project is to be at least, raw TCP in the same round being 1."""

TARGET_ROWS: dict[Operation, float] = {"push": 5e6, "pull": 12e6}
"""Rows a second that it is to do on a 2-core machine."""

PS_LITE_ROWS: dict[Operation, float] = {"push": 1.33e6, "pull": 5.57e6}
"""What ps-lite in C++ did there: see docs/sparse.md."""


def render_text(report: Report) -> str:
    """Return the table in plain aligned text, with the notes below it."""
    lines = [["million rows/s", *OPERATIONS]]
    for row in report.rows:
        cells = [_cell(report, row, operation) for operation in OPERATIONS]
        lines += [
            [label, *(cell[number] for cell in cells)]
            for number, label in enumerate((row.entry.label, "", ""))
        ]
    return "\n".join(
        [align(lines), "", *_notes(report), "", align(_cpu_lines(report)), "", *_targets(report)]
    )


def _cell(report: Report, row: Row, operation: Operation) -> tuple[str, str, str]:
    """Return median, spread, and the speed relative to the ceiling, as text."""
    seconds = summarize(row.seconds(operation))
    shown = [
        f"{report.settings.batch / taken / 1e6:.2f}"
        for taken in (seconds.median, seconds.most, seconds.least)
    ]
    return shown[0], f"{shown[1]} - {shown[2]}", f"{_ratio(report, row, operation):.0%}"


def _ratio(report: Report, row: Row, operation: Operation) -> float:
    ceiling = next(one for one in report.rows if one.entry.name == CEILING.name)
    return median(speed_ratios(row.seconds(operation), ceiling.seconds(operation)))


def _rows_a_second(report: Report, row: Row, operation: Operation) -> float:
    return report.settings.batch / median(row.seconds(operation))


def _notes(report: Report) -> Iterator[str]:
    settings = report.settings
    size = settings.size
    yield (
        f"{size.rows:,} rows of {size.dim} float32, Adagrad; batches of {settings.batch:,} {size.keys} keys; "
        f"{settings.rounds} rounds of {settings.seconds:g} s a figure, one request outstanding."
    )
    yield (
        "Each figure: median; least - most over the rounds; speed relative to raw TCP in the same round "
        f"(median). Raw TCP moves {size.row_bytes} bytes a row for a push, 8 there and {4 * size.dim} back "
        "for a pull."
    )
    yield "push_pull pushes one batch and pulls the next; its rows are counted once."
    yield "Redis: a push is HMGET, Adagrad's step in the client, and HSET; see sparse_systems/redis_hash.py."
    for name, reason in report.missing.items():
        yield f"{name}: {reason}"


def _cpu_lines(report: Report) -> list[list[str]]:
    """Return a table of the milliseconds that one operation takes, and of CPU time in each process."""
    lines = [["ms an operation", *OPERATIONS]]
    for row in report.rows:
        lines.append(
            [f"{row.entry.label}: all", *(f"{1e3 * median(row.seconds(one)):.1f}" for one in OPERATIONS)]
        )
        lines.append(["  CPU of client + each server", *(_cpu(row, one) for one in OPERATIONS)])
    return lines


def _cpu(row: Row, operation: Operation) -> str:
    taken = row.taken[operation]
    servers = min(len(one.servers) for one in taken)
    each = [median(sorted(one.servers)[-1 - number] for one in taken) for number in range(servers)]
    return " + ".join(f"{1e3 * seconds:.1f}" for seconds in (median(one.client for one in taken), *each))


def _targets(report: Report) -> Iterator[str]:
    yield align(_target_lines(report))
    yield "ps-lite: C++, -O3, measured at another time on such a machine; busy: CPU time per wall time."


def _target_lines(report: Report) -> list[list[str]]:
    """Return a table of how this project does against its targets, and which process is the limit."""
    heading = ["target", "of raw TCP", "", "M rows/s", "", "ps-lite", "client", "busiest server", "limit"]
    ours = [row for row in report.rows if row.entry.shards]
    return [heading, *(_target_line(report, row, one) for row in ours for one in TARGET_RATIOS)]


def _target_line(report: Report, row: Row, operation: Operation) -> list[str]:
    ratio, rows = _ratio(report, row, operation), _rows_a_second(report, row, operation)
    client, server = _busy(row, operation)
    return [
        f"{row.entry.label}: {operation}",
        f"{ratio:.2f}",
        _word(ratio, TARGET_RATIOS[operation], 1),
        f"{rows / 1e6:.2f}",
        _word(rows, TARGET_ROWS[operation], 1e6),
        f"{PS_LITE_ROWS[operation] / 1e6:g}",
        f"{client:.0%}",
        f"{server:.0%}",
        "client" if client > server else "server",
    ]


def _word(figure: float, target: float, unit: float) -> str:
    return f"{'>=' if figure >= target else 'below'} {target / unit:g}"


def _busy(row: Row, operation: Operation) -> tuple[float, float]:
    """Return which part of the time the client, and the busiest server, took of a core."""
    taken = row.taken[operation]
    return (
        median(one.client / one.seconds for one in taken),
        median(max(one.servers, default=0.0) / one.seconds for one in taken),
    )


def as_json(report: Report) -> dict[str, Any]:
    """Return every round's figures, to be written as JSON; times in seconds an operation."""
    settings = report.settings
    return {
        "benchmark": "sparse",
        "rows": settings.size.rows,
        "dim": settings.size.dim,
        "keys": settings.size.keys,
        "batch": settings.batch,
        "rounds": settings.rounds,
        "seconds_per_figure": settings.seconds,
        "ceiling": CEILING.name,
        "systems": [
            {
                "name": row.entry.name,
                "label": row.entry.label,
                "operations": {
                    operation: {
                        "seconds": row.seconds(operation),
                        "client_cpu_seconds": [one.client for one in taken],
                        "server_cpu_seconds": [one.servers for one in taken],
                        "rows_per_second": _rows_a_second(report, row, operation),
                        "ratio_to_ceiling": _ratio(report, row, operation),
                    }
                    for operation, taken in row.taken.items()
                },
            }
            for row in report.rows
        ],
        "missing": dict(report.missing),
    }
