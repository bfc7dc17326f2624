"""The dashboard in deploy/, as its panels and queries."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"

DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "asyncps.json").read_text())

PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

_OURS = re.compile(r"\bps(?:server|worker)_[a-z_]+")


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    title: str
    expression: str

    def __str__(self) -> str:
        return f"{self.title}: {self.expression}"

    def with_values(self, **variables: str) -> str:
        """Return the expression with the template's variables replaced, all of them."""
        expression = self.expression
        for name, value in variables.items():
            expression = expression.replace(f"${name}", value)
        assert "$" not in expression
        return expression


def queries() -> Iterator[Query]:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], target["expr"])


def metrics_in(expression: str) -> set[str]:
    """Return the names of this project's samples in an expression."""
    return set(_OURS.findall(expression))
