"""The rows of one step: what each takes in, at which position, and where its cache is.

Rows need not be at the same position. A cache finds them by their slots, or takes them in groups,
stretches of rows that are at one position and whose slots lie side by side, so that no key is
copied.
This module does not know what a row is for.

Legend: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Rows ``first`` to ``last`` at one position, in as many slots from ``slot`` on."""

    first: int
    last: int
    slot: int
    position: int

    @property
    def rows(self) -> slice:
        """Of the batch."""
        return slice(self.first, self.last)

    @property
    def slots(self) -> slice:
        """Of the cache."""
        return slice(self.slot, self.slot + self.last - self.first)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step.

    Attributes
    ----------
    ids : int64 (R,), the class at position 0, after that the token at the position before
    positions : int64 (R,)
    slots : int64 (R,), where the rows are in the cache
    groups : the same positions and slots, row by row from 0 on; rows behind the last group are
        padding and have no past. Left out where the cache does not take rows in groups
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: Sequence[Group] = ()

    @classmethod
    def abreast(cls, ids: Tensor, position: int) -> Rows:
        """All rows at one position, each in the slot of its own number."""
        groups = (Group(0, len(ids), 0, position),)
        slots = torch.arange(len(ids), device=ids.device)
        return cls(ids, torch.full_like(ids, position), slots, groups)


def grouped(slots: Sequence[int], positions: Sequence[int]) -> list[Group]:
    """Group rows by their slots and positions, both (R,)."""
    groups: list[Group] = []
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        before = groups[-1] if groups else None
        if before and position == before.position and slot == before.slots.stop:
            groups[-1] = before._replace(last=row + 1)
        else:
            groups.append(Group(row, row + 1, slot, position))
    return groups
