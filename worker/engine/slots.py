"""Which rows of the cache are free.

Conditional rows are given from the low end, those of the null class from the high end: so those of
images that join together lie side by side, and attention takes them together.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from masc_core.image_batch import NO_SLOT
from masc_core.image_spec import ImageSpec


class Slots:
    """All free at first.

    Parameters
    ----------
    capacity : slots in all
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity))  # ascending

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self, specs: Sequence[ImageSpec]) -> list[tuple[int, int]]:
        """Slots for images that join together, and for their null classes, or `NO_SLOT`.

        Raises
        ------
        ValueError : they need more slots than are free
        """
        num_guided = sum(spec.num_rows - 1 for spec in specs)
        if len(specs) + num_guided > self.free:
            raise ValueError(f"{len(specs) + num_guided} rows do not fit, {self.free} are free")
        low, self._free = self._free[: len(specs)], self._free[len(specs) :]
        middle = self.free - num_guided
        self._free, high = self._free[:middle], iter(self._free[middle:])
        return [
            (slot, NO_SLOT if spec.num_rows == 1 else next(high))
            for slot, spec in zip(low, specs, strict=True)
        ]

    def give_back(self, slots: tuple[int, int]) -> None:
        """Free what an image has taken."""
        for slot in slots:
            if slot != NO_SLOT:
                bisect.insort(self._free, slot)
