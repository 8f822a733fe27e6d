"""Whether a front end takes work and when it can end, with a clock that is told the time."""

from __future__ import annotations

import pytest

from masc_core.errors import DrainingError
from server.drain import LISTEN_SECONDS, Drain
from tests.clock import Clock

MAX_SECONDS = 25.0


@pytest.fixture
def clock() -> Clock:
    return Clock(now=1000.0)


@pytest.fixture
def drain(clock: Clock) -> Drain:
    return Drain(MAX_SECONDS, clock)


def test_before_it_is_told_work_is_taken_and_nothing_is_over(drain: Drain, clock: Clock) -> None:
    clock.now += 1e6
    drain.check()
    assert not drain.is_draining
    assert not drain.is_over


def test_once_told_it_takes_no_work_and_says_when_to_come_back(drain: Drain) -> None:
    drain.begin()
    assert drain.is_draining
    with pytest.raises(DrainingError, match="about to stop") as refused:
        drain.check()
    assert refused.value.retry_after > 0


def test_without_work_it_still_listens_for_a_moment(drain: Drain, clock: Clock) -> None:
    drain.begin()
    clock.now += 0.9 * LISTEN_SECONDS
    assert not drain.is_over
    clock.now += 0.2 * LISTEN_SECONDS
    assert drain.is_over


def test_it_waits_for_all_work_even_such_that_fails(drain: Drain, clock: Clock) -> None:
    with drain.working():
        drain.begin()
        with pytest.raises(KeyError), drain.working():
            raise KeyError("broken")
        clock.now += LISTEN_SECONDS + 5
        assert not drain.is_over
    assert drain.is_over


def test_it_does_not_wait_longer_than_it_may(drain: Drain, clock: Clock) -> None:
    with drain.working():
        drain.begin()
        clock.now += MAX_SECONDS - 1
        assert not drain.is_over
        drain.begin()  # a second signal does not put it off
        clock.now += 1
        assert drain.is_over
