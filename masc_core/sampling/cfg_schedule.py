"""How strongly each position of an image is guided.

A schedule gives every position a scale between 1, which is no guidance, and the request's
``cfg_scale``; the first position has the full one. Every later position gets `ABOVE_ONE` added,
except where ``constant`` or ``step`` give the full scale; GigaTok's published code does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from masc_core.errors import InvalidFieldError

CFGSchedule = Literal["constant", "step", "rectangular", "linear", "linear_re", "triangular"]
CFG_SCHEDULES: tuple[CFGSchedule, ...] = get_args(CFGSchedule)
WITH_START = ("step", "rectangular")  # which use `cfg_start`; the same function under two names
DEFAULT_CFG_START = 0.18
ABOVE_ONE = 1e-4


def effective_schedule(cfg_scale: float, schedule: CFGSchedule) -> CFGSchedule:
    """The schedule under the one name of those that guide an image alike."""
    if cfg_scale == 1:
        return "constant"
    return "step" if schedule in WITH_START else schedule


def check_cfg_start(start: float | None, schedule: str) -> None:
    """Raise an `InvalidFieldError` where a start is given to a schedule that has none."""
    if start is not None and schedule not in WITH_START:
        message = f"cfg_start must be left out: the schedule {schedule} has none; step has"
        raise InvalidFieldError("cfg_start", message)


def scheduled_scales(
    cfg_scale: float, schedule: CFGSchedule, start: float, num_positions: int
) -> list[float]:
    """Guidance of each of the L positions.

    With r = i / (L - 1) for position i = 1 ... L - 1, of a scale s above 1, and e = `ABOVE_ONE`::

        constant            s
        step, rectangular   s where r >= start, else 1 + e
        linear              1 + (s - 1) r + e
        linear_re           1 + (s - 1) (1 - r) + e
        triangular          1 + (s - 1) min(r, 1 - r) / 0.5 + e
    """
    if cfg_scale == 1 or schedule == "constant":
        return [cfg_scale] * num_positions
    ratios = [i / (num_positions - 1) for i in range(1, num_positions)]
    if schedule in WITH_START:
        return [cfg_scale, *(cfg_scale if r >= start else 1 + ABOVE_ONE for r in ratios)]
    ramp = _RAMPS[schedule]
    return [cfg_scale, *(1 + (cfg_scale - 1) * ramp(r) + ABOVE_ONE for r in ratios)]


_RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "linear_re": lambda r: 1 - r,
    "triangular": lambda r: min(r, 1 - r) / 0.5,
}
