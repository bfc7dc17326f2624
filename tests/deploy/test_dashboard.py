"""The Grafana dashboard, as far as it can be looked at without Grafana: there is none to run here."""

import itertools
import json
from collections import Counter
from typing import Any

import yaml
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.dashboard import DASHBOARD, GRAFANA, PANELS, queries

COLUMNS = 24


def lost(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """Return what is in ``mine`` and not, or not the same, in ``theirs``."""
    if isinstance(mine, dict):
        keys = (key for key, value in mine.items() if value is not None)
        has = theirs if isinstance(theirs, dict) else {}
        return [one for key in keys for one in lost(mine[key], has.get(key), f"{path}/{key}")]
    if isinstance(mine, list):
        pairs = itertools.zip_longest(mine, theirs or ())
        return [one for number, (a, b) in enumerate(pairs) for one in lost(a, b, f"{path}/{number}")]
    return [] if mine == theirs else [f"{path}: {mine!r} became {theirs!r}"]


def test_grafanas_own_types_know_every_field() -> None:
    plugins.register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert lost(DASHBOARD, json.loads(encoder.JSONEncoder().encode(read))) == []


def test_a_field_that_grafana_does_not_know_is_found() -> None:
    plugins.register_default_plugins()
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    read = Dashboard.from_json(wrong)
    assert lost(wrong, json.loads(encoder.JSONEncoder().encode(read))) == [
        "/panels/1/fieldConfig/defaults/units: 's' became None"
    ]


def test_panels_have_numbers_titles_and_descriptions_of_their_own() -> None:
    assert set(Counter(panel["id"] for panel in PANELS).values()) == {1}
    assert set(Counter(panel["title"] for panel in PANELS).values()) == {1}
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"]
            references = [target["refId"] for target in panel["targets"]]
            assert references == sorted(set(references))
            assert references


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        taken.update(itertools.product(columns, rows))
    assert set(taken.values()) == {1}


def test_everything_asks_the_data_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    (chosen, *variables) = DASHBOARD["templating"]["list"]
    assert (chosen["name"], chosen["type"]) == ("datasource", "datasource")
    assert chosen["current"] == {"selected": True, "text": source["name"], "value": source["uid"]}
    asked = [panel for panel in PANELS if panel["type"] != "row"]
    asked += [target for panel in asked for target in panel["targets"]]
    for one in (*asked, *variables, *DASHBOARD["annotations"]["list"]):
        assert one["datasource"] == {"type": source["type"], "uid": "${datasource}"}


def test_the_pace_of_the_data_source_is_that_of_the_scrapes() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    scrapes = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    pace = scrapes["global"]["scrape_interval"]
    assert provisioned["datasources"][0]["jsonData"]["timeInterval"] == pace


def test_queries_use_the_variables_that_there_are() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "server", "job"}
    for query in queries():
        query.with_values(__rate_interval="1m", server=".*", job=".*")
