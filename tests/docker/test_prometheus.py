"""Rules and dashboards: valid, tested, and over metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose.expressions import (
    DASHBOARDS,
    DOCKER,
    PROMETHEUS,
    Expression,
    expressions,
    panels,
    rule_expressions,
)
from tests.contract_metrics import CONTRACT, FURTHER

OPERATING = DOCKER.parent / "docs" / "operating.md"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
QUESTIONS = [
    "Is it up?",
    "How fast?",
    "How full?",
    "How unsure is the model?",
    "Which version runs?",
]
BY_PROMETHEUS = {"up", "ALERTS"}


def promtool(*arguments: str | Path) -> str:
    """Output of a command that is to succeed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_rules_do_what_their_tests_say() -> None:
    assert promtool("test", "rules", *UNIT_TESTS).count("SUCCESS") == len(UNIT_TESTS) == 2


def test_every_rule_has_a_unit_test() -> None:
    tested = "\n".join(path.read_text() for path in UNIT_TESTS)
    for rule in rule_expressions():
        asked = {"alert": f"alertname: {rule.name}\n", "record": f"expr: {rule.name}"}
        assert asked[rule.kind] in tested, rule.name


def test_every_query_of_a_dashboard_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": expression.text}
        for i, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


def exposed_names() -> set[str]:
    """What can be queried of the metrics that tests/test_telemetry.py finds exposed."""
    names = set(BY_PROMETHEUS)
    for metric in (*CONTRACT, *FURTHER):
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(metric.name)
    return names | {rule.name for rule in rule_expressions() if rule.kind == "record"}


@pytest.mark.parametrize("expression", expressions(), ids=lambda e: f"{e.kind} {e.name}")
def test_only_metrics_that_exist_are_asked_for(expression: Expression) -> None:
    assert expression.metrics
    assert expression.metrics <= exposed_names()


def test_the_names_in_an_expression_are_found() -> None:
    text = 'sum(masc:a:rate5m{x="masc_no"}) / rate(masc_b_total[5m]) and up == 1'
    assert Expression("panel", "", text).metrics == {"masc:a:rate5m", "masc_b_total", "up"}


def test_the_whole_contract_is_on_the_dashboard_or_behind_it() -> None:
    asked = {name for expression in expressions() for name in expression.metrics}
    for metric in CONTRACT:
        parts = {metric.name, f"{metric.name}_bucket", f"{metric.name}_sum"}
        assert parts & asked, metric.name


def test_the_dashboard_answers_the_questions_in_order() -> None:
    in_order = sorted(panels(), key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    assert [panel["title"] for panel in in_order if panel["type"] == "row"] == QUESTIONS
    assert [panel["id"] for panel in in_order] == [panel["id"] for panel in panels()]


def test_tiles_tell_of_this_moment() -> None:
    tiles = [panel for panel in panels() if panel["type"] == "stat"]
    assert len(tiles) == 6
    assert all(target["instant"] is True for panel in tiles for target in panel["targets"])
    for panel in tiles[:3]:  # what does not answer is not up
        assert panel["targets"][0]["expr"].endswith(" or vector(0)"), panel["title"]


def test_panels_are_told_apart_and_explained() -> None:
    everything = list(panels())
    assert len({panel["id"] for panel in everything}) == len(everything)
    for panel in everything:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["targets"], panel["title"]
    for one in everything:
        for other in everything:
            assert one is other or not overlap(one["gridPos"], other["gridPos"]), (one, other)


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return all(
        a[start] < b[start] + b[size] and b[start] < a[start] + a[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_dashboards_use_the_provisioned_data_source() -> None:
    path = DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    for panel in panels():
        used: list[dict[str, Any]] = [panel, *panel.get("targets", ())]
        assert {part["datasource"]["uid"] for part in used} == {source["uid"]}
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS.glob("*.json")]
    assert uids == ["masc"]


def test_the_manual_tells_what_to_do_about_every_alert() -> None:
    told = set(re.findall(r"`(Masc[A-Za-z]+)`", OPERATING.read_text()))
    assert told == {rule.name for rule in rule_expressions() if rule.kind == "alert"}


def test_an_alert_says_how_bad_it_is_and_what_it_is() -> None:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["labels"]["severity"] in {"warning", "critical"}
                    assert rule["annotations"]["summary"].rstrip().endswith(".")
