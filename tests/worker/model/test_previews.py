"""The budget of previews, with a clock that goes when it is told to."""

from __future__ import annotations

import pytest

from tests.clock import Clock
from worker.model.previews import MAX_CREDIT, PreviewBudget


def preview(budget: PreviewBudget, seconds: float) -> bool:
    """Make a preview that takes so long, if it may be made."""
    paid = budget.pay()
    if paid is not None:
        budget.settle(paid, seconds)
    return paid is not None


def test_an_image_alone_gets_previews_at_once() -> None:
    budget = PreviewBudget(clock=Clock())
    assert preview(budget, 0.01)
    assert preview(budget, 0.01)


@pytest.mark.parametrize("step", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("cost", [0.0005, 0.004, 0.2])
def test_in_the_long_run_previews_take_their_share_of_the_time(step: float, cost: float) -> None:
    clock = Clock()
    budget, spent = PreviewBudget(0.05, clock), 0.0
    while clock.now < 100.0:
        clock.now += step
        if preview(budget, cost):
            clock.now += cost
            spent += cost
    assert spent <= 0.05 * clock.now + MAX_CREDIT + cost
    wanted = cost / (step + cost)  # if every one were made
    assert spent >= 0.95 * min(0.05, wanted) * clock.now


def test_many_that_are_due_at_once_do_not_find_the_same_credit() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    assert budget.pay() is not None
    assert budget.pay() is None  # of the first it is not known yet what it takes
    budget.settle(MAX_CREDIT, 0.02)
    clock.now += 1000.0
    paid = [budget.pay() for _ in range(16)]
    assert paid == [0.02] * 3 + [None] * 13


def test_what_was_paid_in_advance_is_set_right() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    assert preview(budget, 0.001)
    first, second = budget.pay(), budget.pay()
    assert first == second == 0.001
    budget.settle(0.001, 0.1)
    budget.settle(0.001, 0.1)
    assert budget.pay() is None
    clock.now += (0.201 - MAX_CREDIT) / 0.05
    assert budget.pay() is None
    clock.now += 0.001
    assert budget.pay() == 0.1


def test_credit_does_not_pile_up() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    clock.now += 1e6
    assert [preview(budget, 0.3 * MAX_CREDIT) for _ in range(5)] == [True] * 4 + [False]
