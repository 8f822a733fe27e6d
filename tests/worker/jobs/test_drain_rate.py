from __future__ import annotations

import pytest

from tests.clock import Clock
from worker.jobs.drain_rate import WINDOW_SECONDS, DrainRate, retry_after


def test_the_rate_is_measured_over_the_time_that_there_was_work() -> None:
    clock = Clock(1000.0)
    rate = DrainRate(clock)
    assert rate.per_second() == 0.0
    clock.now += 3600
    rate.restart()
    for _ in range(10):
        clock.now += 0.5
        rate.count()
    assert rate.per_second() == pytest.approx(2.0)


def test_the_rate_forgets_what_is_older_than_the_window() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    for _ in range(200):
        clock.now += 0.25
        rate.count()
    assert rate.per_second() == pytest.approx(4.0, rel=0.02)
    assert len(rate._finished) <= 4 * WINDOW_SECONDS + 1
    clock.now += WINDOW_SECONDS + 1
    assert rate.per_second() == 0.0
    assert not rate._finished


def test_a_burst_at_the_very_start_has_a_finite_rate() -> None:
    rate = DrainRate(Clock())
    rate.count()
    assert rate.per_second() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("depth", "rate", "seconds"),
    [
        (64, 2.0, 16.0),
        (64, 1000.0, 1.0),
        (64, 0.001, 120.0),
        (64, 0.0, 5.0),
    ],
)
def test_a_refused_client_comes_back_when_half_has_drained(
    depth: int, rate: float, seconds: float
) -> None:
    assert retry_after(depth, rate) == seconds
