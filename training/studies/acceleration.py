"""Training acceleration: how much sooner a run is as good as a baseline is at its end.

``(E - E') / E`` with E the baseline's last epoch and E' the first epoch, interpolated linearly
between evaluations, at which the other run's metric is at most the baseline's last one. A run that
does not get there has no acceleration, unless an extrapolation is asked for.

Zheng et al.'s "percentage of epochs saved". Lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import decode_text, parse_json, read_file
from masc_core.io.files import read_json
from training.changes import changes

OF_AN_EPOCH = {"transformer", "device", "made_with"}  # settings that may differ between evaluations
Point = tuple[float, float]  # epoch and metric


@dataclass(frozen=True, slots=True)
class Acceleration:
    """Of one run against a baseline.

    Attributes
    ----------
    target : the baseline's last metric
    base_epoch : its epoch
    epoch : where the other run reaches it; None where it does not
    extrapolated : whether that is beyond its last evaluation
    """

    target: float
    base_epoch: float
    epoch: float | None
    extrapolated: bool = False

    @property
    def saved(self) -> float | None:
        """Share of the baseline's epochs that are not needed; None if the target is not reached."""
        return None if self.epoch is None else (self.base_epoch - self.epoch) / self.base_epoch


def acceleration(
    base: Sequence[Point], other: Sequence[Point], *, extrapolate: bool = False
) -> Acceleration:
    """Compare two curves of at least one evaluation each, in the order of their epochs.

    ``extrapolate`` goes on along the line through the last two points, if that goes down. A
    ConfigError where the baseline was not trained.
    """
    base_epoch, target = base[-1]
    if base_epoch <= 0:
        raise ConfigError("the baseline's last evaluation is before its first epoch")
    for i, (epoch, value) in enumerate(other):
        if value <= target:
            reached = crossing(other[i - 1], (epoch, value), target) if i else epoch
            return Acceleration(target, base_epoch, reached)
    if extrapolate and len(other) > 1 and other[-1][1] < other[-2][1]:
        reached = crossing(other[-2], other[-1], target)
        return Acceleration(target, base_epoch, reached, extrapolated=True)
    return Acceleration(target, base_epoch, None)


def crossing(before: Point, after: Point, target: float) -> float:
    """Epoch at which the line through two points has the value ``target``."""
    (x0, y0), (x1, y1) = before, after
    return x0 + (x1 - x0) * (y0 - target) / (y0 - y1)


def read_curve(run: Path, metric: str) -> list[Point]:
    """Epochs and a metric of a run's folder, or of a file of JSON lines.

    In a folder these are the validations, and evaluations of the epochs that it kept.

    Raises
    ------
    ArtifactError
        The log is missing or damaged.
    ConfigError
        It does not have the metric.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    try:
        rows = _rows(decode_text(read_file(path)).splitlines())
        evaluations = {
            int(evaluated.parent.name): read_json(evaluated)
            for evaluated in sorted(run.glob("epochs/*/evaluation.json"))
        }
        _require_same_settings(run, evaluations)
        rows += [evaluation | {"epoch": epoch} for epoch, evaluation in evaluations.items()]
        points = [
            (float(r["epoch"]), float(r[metric])) for r in rows if {"epoch", metric} <= r.keys()
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(path, f"is no log of evaluations ({error})") from error
    if not points:
        raise ConfigError(f"metric: {path} has no {metric!r} by epoch")
    return sorted(points)


def _require_same_settings(run: Path, evaluations: Mapping[int, dict[str, Any]]) -> None:
    settings = {
        epoch: {k: v for k, v in evaluation.get("settings", {}).items() if k not in OF_AN_EPOCH}
        for epoch, evaluation in evaluations.items()
    }
    first, *others = settings.items() or [(0, {})]
    for epoch, one in others:
        if changed := changes(first[1], one):
            raise ConfigError(f"{run}: epoch {epoch} was evaluated otherwise: {changed}")


def _rows(lines: list[str]) -> list[dict[str, float]]:
    """Objects of the lines; a last one that was being written when a run was killed is left out."""
    rows = [parse_json(line) for line in lines[:-1]]
    try:
        return [*rows, *(parse_json(line) for line in lines[-1:])]
    except ValueError:
        if not rows:
            raise
        return rows
