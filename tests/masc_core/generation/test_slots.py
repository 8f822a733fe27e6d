from __future__ import annotations

import random

import pytest

from masc_core.generation.slots import NO_SLOT, Member, num_rows, seat
from masc_core.image_spec import ImageSpec
from masc_core.models.rows import grouped

PLAIN, GUIDED = ImageSpec(0, 1.0, seed=0), ImageSpec(0, 2.0, seed=0)


def test_images_that_join_together_lie_side_by_side() -> None:
    taken = seat([GUIDED, PLAIN, GUIDED], [], 8, 5)
    assert [(m.slot, m.null) for m in taken] == [(0, 6), (1, NO_SLOT), (2, 7)]
    assert [m.joined for m in taken] == [5, 5, 5]
    slots = [m.slot for m in taken] + [m.null for m in taken if m.is_guided]
    assert len(grouped(slots, [0] * 5)) == 2


def test_no_slot_is_given_twice_and_none_is_lost() -> None:
    rng = random.Random(0)
    members: list[Member] = []
    for step in range(2000):
        specs = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(1, 4))]
        if num_rows(members) + sum(spec.num_rows for spec in specs) > 13:
            with pytest.raises(ValueError, match="do not fit"):
                seat(specs, members, 13, step)
            members.pop(rng.randrange(len(members)))
            continue
        members += seat(specs, members, 13, step)
        taken = [slot for m in members for slot in (m.slot, m.null) if slot != NO_SLOT]
        assert len(set(taken)) == len(taken) == num_rows(members)
        assert set(taken) <= set(range(13))
