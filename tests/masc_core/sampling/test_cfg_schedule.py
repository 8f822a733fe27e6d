from __future__ import annotations

import math

import numpy as np
import pytest

from masc_core.errors import InvalidFieldError
from masc_core.sampling.cfg_schedule import (
    ABOVE_ONE,
    CFG_SCHEDULES,
    CFGSchedule,
    scheduled_scales,
)
from masc_core.sampling.params import SamplingParams


def plain_scale(
    cfg_scale: float, schedule: str, start: float, position: int, num_positions: int
) -> float:
    """The definition, a position at a time."""
    if position == 0 or cfg_scale == 1 or schedule == "constant":
        return cfg_scale
    ratio = position / (num_positions - 1)
    if schedule in ("step", "rectangular"):
        return cfg_scale if ratio >= start else 1.0001
    if schedule == "linear":
        return 1 + (cfg_scale - 1) * ratio + 1e-4
    if schedule == "linear_re":
        return 1 + (cfg_scale - 1) * (1 - ratio) + 1e-4
    if ratio < 0.5:
        return 1 + (cfg_scale - 1) * ratio / 0.5 + 1e-4
    return 1 + (cfg_scale - 1) * (1 - ratio) / 0.5 + 1e-4


@pytest.mark.parametrize("schedule", CFG_SCHEDULES)
@pytest.mark.parametrize("num_positions", [1, 2, 3, 16, 256, 577])
@pytest.mark.parametrize("cfg_scale", [1.0, 1.5, 20.0])
def test_is_the_definition(schedule: CFGSchedule, num_positions: int, cfg_scale: float) -> None:
    for start in (0.0, 0.18, 0.5, 1.0):
        scales = scheduled_scales(cfg_scale, schedule, start, num_positions)
        expected = [
            plain_scale(cfg_scale, schedule, start, position, num_positions)
            for position in range(num_positions)
        ]
        np.testing.assert_array_max_ulp(np.array(scales), np.array(expected), maxulp=4)
        assert scales[0] == cfg_scale


def test_a_step_begins_at_its_share() -> None:
    scales = np.array(scheduled_scales(2.5, "step", 0.18, 256))
    first = math.ceil(0.18 * 255)
    np.testing.assert_array_equal(scales[1:first], 1 + ABOVE_ONE)
    np.testing.assert_array_equal(scales[first:], 2.5)
    np.testing.assert_array_equal(
        np.array(scheduled_scales(2.5, "step", 1.0, 256))[[0, 254, 255]], [2.5, 1.0001, 2.5]
    )


def test_unknown_schedules_and_starts_are_refused() -> None:
    with pytest.raises(InvalidFieldError, match="cfg_schedule must be one of constant, step"):
        SamplingParams(0, 2.0, 0, cfg_schedule="cosine")  # type: ignore[arg-type]
    for start in (-0.01, 1.01, math.nan):
        with pytest.raises(InvalidFieldError, match=r"cfg_start must be in \[0, 1\]"):
            SamplingParams(0, 2.0, 0, cfg_schedule="step", cfg_start=start)
