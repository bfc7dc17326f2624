"""The alerting rules, and what is written about each of them."""

import re
from typing import Any

import pytest
import yaml

from tests.chapters import chapter
from tests.deploy.prometheus import CONFIGURATION


def read(name: str) -> Any:
    return yaml.safe_load((CONFIGURATION / name).read_text())


RULES: list[dict[str, Any]] = [rule for group in read("alerts.yml")["groups"] for rule in group["rules"]]
NAMES = [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_each_alert_has_its_runbook_paragraph_and_there_is_none_without_alert() -> None:
    runbook = chapter("operations.md", "When an alert fires")
    assert re.findall(r"^### (\w+)$", runbook, re.MULTILINE) == NAMES
    for paragraph in re.split(r"^### \w+$", runbook, flags=re.MULTILINE)[1:]:
        for part in ("**Means:**", "**Look at:**", "**Do:**"):
            assert part in paragraph


def test_each_alert_is_tested_both_ways() -> None:
    checks = [check for test in read("alerts_test.yml")["tests"] for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == set(NAMES)
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == set(NAMES)
