"""Who is in a batch, and in which slots of its cache.

Conditional rows take slots from the low end, those of the null class from the high end: so those of
images that join together lie side by side, and attention takes them together.
This module does not know what is in a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from masc_core.image_spec import ImageSpec

NO_SLOT = -1


class Member(NamedTuple):
    """An image in a batch.

    Attributes
    ----------
    spec : what to draw
    slot : of the conditional row; what the image is known by
    null : slot of the row of the null class, or ``NO_SLOT``
    joined : steps of the batch before this image came
    """

    spec: ImageSpec
    slot: int
    null: int
    joined: int

    @property
    def is_guided(self) -> bool:
        """Whether there is a row of the null class."""
        return self.null != NO_SLOT


def num_rows(members: Sequence[Member]) -> int:
    """Rows of the transformer's batch that the images take."""
    return sum(member.spec.num_rows for member in members)


def seat(
    specs: Sequence[ImageSpec], members: Sequence[Member], num_slots: int, step: int
) -> list[Member]:
    """Find slots for images that join together; nobody is moved.

    Parameters
    ----------
    specs : of those who join
    members : those who are here
    num_slots : in all
    step : steps of the batch so far

    Raises
    ------
    ValueError : they need more slots than are free
    """
    taken = {slot for member in members for slot in (member.slot, member.null)}
    free = [slot for slot in range(num_slots) if slot not in taken]
    num_guided = sum(spec.num_rows - 1 for spec in specs)
    if len(specs) + num_guided > len(free):
        raise ValueError(f"{len(specs) + num_guided} rows do not fit, {len(free)} are free")
    nulls = iter(free[len(free) - num_guided :])
    return [
        Member(spec, slot, NO_SLOT if spec.num_rows == 1 else next(nulls), step)
        for spec, slot in zip(specs, free, strict=False)
    ]
