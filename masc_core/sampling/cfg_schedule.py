"""How strongly each position of an image is guided.

A schedule gives the scale of every position between 1, which is no guidance, and the request's
``cfg_scale``. The first position has the whole scale in each of them. Scales below the whole one
are raised by `ABOVE_ONE`, so that they are those with which figures for GigaTok were published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from masc_core.errors import InvalidFieldError

CFGSchedule = Literal["constant", "step", "rectangular", "linear", "linear_re", "triangular"]
CFG_SCHEDULES: tuple[CFGSchedule, ...] = get_args(CFGSchedule)
WITH_START = ("step", "rectangular")  # which heed `cfg_start`; the same function under two names
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
        raise InvalidFieldError("cfg_start", f"the schedule {schedule} has none; step has")


def scheduled_scales(
    cfg_scale: float, schedule: CFGSchedule, start: float, num_positions: int
) -> list[float]:
    """Guidance of each of the L positions.

    With r = i / (L - 1) for position i = 1 ... L - 1, of a scale s above 1::

        constant            s
        step, rectangular   s where r >= start, else 1
        linear              1 + (s - 1) r
        linear_re           1 + (s - 1) (1 - r)
        triangular          1 + (s - 1) min(r, 1 - r) / 0.5
    """
    if cfg_scale == 1 or schedule == "constant":
        return [cfg_scale] * num_positions
    ratios = [i / (num_positions - 1) for i in range(1, num_positions)]
    if schedule in WITH_START:
        return [cfg_scale, *(cfg_scale if r >= start else 1 + ABOVE_ONE for r in ratios)]
    share = _SHARES[schedule]
    return [cfg_scale, *(1 + (cfg_scale - 1) * share(r) + ABOVE_ONE for r in ratios)]


_SHARES: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "linear_re": lambda r: 1 - r,
    "triangular": lambda r: min(r, 1 - r) / 0.5,
}
