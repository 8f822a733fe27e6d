"""Who is in a batch, where in its tables and its cache, and how a step's rows are laid out.

A step has the rows of its images, then one row for the null class of each guided image, then
filling, which belongs to a slot of nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from masc_core.sampling.params import SamplingParams

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Slot:
    """An image in a batch.

    Attributes
    ----------
    spec : what to draw
    index : of its row in the tables and of its conditional row in the cache
    null : of its row of the null class in the cache, or ``NO_SLOT``
    """

    spec: SamplingParams
    index: int
    null: int

    @property
    def is_guided(self) -> bool:
        """Whether there is a row of the null class."""
        return self.null != NO_SLOT


class StepShape(NamedTuple):
    """Numbers of a step that a recorded one cannot change.

    Attributes
    ----------
    rows : R, of the transformer's batch, filling included
    images : B, filling included
    filters : whether any image may ask for top-k or top-p
    refined : n, images whose codes the refiner draws, filling included
    """

    rows: int
    images: int
    filters: bool
    refined: int = 0


class Layout(NamedTuple):
    """Who is in a step, as numbers; see `masc_core.generation.step.Indices`."""

    slots: list[int]
    owners: list[int]
    is_null: list[int]
    images: list[int]
    partners: list[int]
    refined: list[int]


def num_rows(slots: Sequence[Slot]) -> int:
    """Rows of the transformer's batch that the images take."""
    return sum(slot.spec.num_rows for slot in slots)


def allocate(specs: Sequence[SamplingParams], slots: Sequence[Slot], num_slots: int) -> list[Slot]:
    """Find room for images that join together; nobody is moved.

    Parameters
    ----------
    specs : of those who join
    slots : of those who are here
    num_slots : in all

    Raises
    ------
    ValueError : they need more than is free
    """
    taken = {index for slot in slots for index in (slot.index, slot.null)}
    free = [index for index in range(num_slots) if index not in taken]
    needed = sum(spec.num_rows for spec in specs)
    if needed > len(free):
        raise ValueError(f"{needed} rows do not fit, {len(free)} are free")
    indices = iter(free)
    return [
        Slot(spec, next(indices), NO_SLOT if spec.num_rows == 1 else next(indices))
        for spec in specs
    ]


def refined_images(slots: Sequence[Slot]) -> list[int]:
    """Which of the images have their codes drawn by the refiner."""
    return [image for image, slot in enumerate(slots) if slot.spec.decoding == "refine"]


def has_filters(slots: Sequence[Slot]) -> bool:
    """Whether any image asks for top-k or top-p."""
    return any(slot.spec.top_k or slot.spec.top_p < 1 for slot in slots)


def lay_out(shape: StepShape, slots: Sequence[Slot], spare: int) -> Layout:
    """Place images in a shape that holds them; ``spare`` is the slot of what fills up."""
    guided = [slot for slot in slots if slot.is_guided]
    rows = [(s.index, s.index, 0) for s in slots] + [(s.null, s.index, 1) for s in guided]
    rows += [(spare, spare, 0)] * (shape.rows - len(rows))
    cache, owners, is_null = map(list, zip(*rows, strict=True))
    images = [slot.index for slot in slots]
    null_rows = {slot.index: len(slots) + i for i, slot in enumerate(guided)}
    partners = [null_rows.get(index, row) for row, index in enumerate(images)]
    filling = range(len(slots), shape.images)
    # One that is refined twice at once gets the same code twice.
    refined = range(shape.images) if shape.refined == shape.images else refined_images(slots)
    return Layout(
        cache,
        owners,
        is_null,
        images + [spare] * len(filling),
        [*partners, *filling],
        [*refined, *[*refined][:1] * (shape.refined - len(refined))],
    )
