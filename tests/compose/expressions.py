"""What dashboards and rules ask of Prometheus, read from their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
PROMETHEUS = DOCKER / "prometheus"
DASHBOARDS = DOCKER / "grafana" / "dashboards"

METRIC = re.compile(r"\b(?:masc[_:][a-z0-9_:]+|up|ALERTS)\b")
QUOTED = re.compile(r'"[^"]*"')
SILENT = re.compile(r"masc[_:](gpu_memory|prediction_cluster_entropy)")


@dataclass(frozen=True, slots=True)
class Expression:
    """One query, and where it stands."""

    kind: Literal["panel", "record", "alert"]
    name: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that it reads."""
        return set(METRIC.findall(QUOTED.sub('""', self.text)))

    @property
    def is_silent(self) -> bool:
        """Whether it has nothing to tell of the included model, without a partition, and no GPU."""
        return SILENT.search(self.text) is not None


def panels() -> Iterator[dict[str, Any]]:
    """Panels of all dashboards."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        yield from json.loads(path.read_text())["panels"]


def panel_expressions() -> Iterator[Expression]:
    """Queries of all panels."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield Expression("panel", panel["title"], target["expr"])


def rule_expressions() -> Iterator[Expression]:
    """Expressions of all rules."""
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                kind: Literal["record", "alert"] = "record" if "record" in rule else "alert"
                yield Expression(kind, rule[kind], rule["expr"])


def expressions() -> list[Expression]:
    """All of them."""
    return [*panel_expressions(), *rule_expressions()]
