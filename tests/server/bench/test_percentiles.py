from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from server.bench.percentiles import Percentiles


def interpolated(values: list[float], share: float) -> float:
    """The definition: linear between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("number", [1, 2, 3, 100, 1001])
def test_percentiles_by_their_definition(number: int) -> None:
    values = [random.Random(number).expovariate(3.0) for _ in range(number)]
    found = Percentiles.of(np.array(values))
    assert found is not None
    assert found.count == number
    assert found.mean == pytest.approx(math.fsum(values) / number)
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    for name, share in shares.items():
        assert getattr(found, name) == pytest.approx(interpolated(values, share)), name
    ascending = [found.p50, found.p90, found.p95, found.p99, found.max]
    assert all(a <= b for a, b in pairwise(ascending))


def test_what_is_not_known_does_not_count() -> None:
    found = Percentiles.of(np.array([np.nan, 2.0, np.nan, 4.0]))
    assert found is not None
    assert (found.count, found.p50, found.max) == (2, 3.0, 4.0)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_of_nothing_there_are_no_percentiles(values: list[float]) -> None:
    assert Percentiles.of(np.array(values, float)) is None
