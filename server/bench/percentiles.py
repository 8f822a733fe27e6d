"""Percentiles of measured times, by linear interpolation between the two nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


class Percentiles(BaseModel):
    """How some times are distributed; seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: npt.NDArray[Any]) -> Percentiles | None:
        """Describe times, those left out that are NaN; None if there are none."""
        known = seconds[~np.isnan(seconds)]
        if not len(known):
            return None
        p50, p90, p95, p99 = map(float, np.percentile(known, (50, 90, 95, 99)))
        return cls(
            count=len(known),
            mean=float(known.mean()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(known.max()),
        )
