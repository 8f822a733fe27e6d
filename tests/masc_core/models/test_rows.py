from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from masc_core.models.rows import Group, Rows, grouped


@given(st.data())
def test_groups_cover_the_rows_in_order(data: st.DataObject) -> None:
    slots = data.draw(st.lists(st.integers(0, 30), unique=True, max_size=12))
    positions = [data.draw(st.integers(0, 2)) for _ in slots]
    groups = grouped(slots, positions)
    flat = [
        (row, slot, group.position)
        for group in groups
        for row, slot in zip(
            range(group.first, group.last),
            range(group.slots.start, group.slots.stop),
            strict=True,
        )
    ]
    assert flat == [(row, slots[row], positions[row]) for row in range(len(slots))]


def test_groups_are_as_few_as_can_be() -> None:
    groups = grouped([3, 4, 5, 9, 10, 0], [7, 7, 8, 8, 8, 8])
    assert groups == [Group(0, 2, 3, 7), Group(2, 3, 5, 8), Group(3, 5, 9, 8), Group(5, 6, 0, 8)]


def test_abreast() -> None:
    rows = Rows.abreast(torch.tensor([5, 6, 7]), 2)
    assert rows.positions.tolist() == [2, 2, 2]
    assert list(rows.groups) == grouped([0, 1, 2], [2, 2, 2])
