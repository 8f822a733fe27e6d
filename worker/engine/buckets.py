"""The few shapes that steps are recorded for, and how a batch is laid out in one of them.

A step has the rows of its images, then one row for each null class, then filling. It takes the
smallest shape that holds it.
This module does not know about tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from masc_core.generation.slots import Member, num_rows

# One row costs what two cost, and would take other kernels than they do.
ROWS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)


class Bucket(NamedTuple):
    """A shape of a step.

    Attributes
    ----------
    rows : R, of the transformer's batch
    images : B, half of them if nearly all are guided, or as many
    filters : whether any image may ask for top-k or top-p
    refine : whether any image may ask for the refiner
    """

    rows: int
    images: int
    filters: bool
    refine: bool = False


class Layout(NamedTuple):
    """Indices of a step, as `masc_core.generation.step.Indices` describes them."""

    slots: list[int]
    owners: list[int]
    is_null: list[int]
    images: list[int]
    partners: list[int]


def buckets(
    capacity: int, *, only_largest: bool = False, with_refiner: bool = False
) -> list[Bucket]:
    """All shapes for a capacity in rows, smaller ones first.

    Parameters
    ----------
    capacity : rows that images may take
    only_largest : let every step have the shape of a full batch of images that are not guided
    with_refiner : whether images can ask for the refiner
    """
    largest = max(2, capacity + capacity % 2)
    shapes = [(largest, largest)]
    if not only_largest:
        heights = [*(rows for rows in ROWS if rows < largest), largest]
        shapes = [(rows, images) for rows in heights for images in (rows // 2, rows)]
    return [
        Bucket(rows, images, filters, refine)
        for rows, images in shapes
        for filters in (False, True)
        for refine in ((False, True) if with_refiner else (False,))
    ]


def choose(fitting: Sequence[Bucket], members: Sequence[Member]) -> Bucket:
    """Return the first shape, of those in ascending order, that holds the images."""
    rows = num_rows(members)
    filters = any(member.spec.top_k or member.spec.top_p < 1 for member in members)
    refine = any(member.spec.decoding == "refine" for member in members)
    return next(
        bucket
        for bucket in fitting
        if bucket.rows >= rows and bucket.images >= len(members)
        if (bucket.filters, bucket.refine) == (filters, refine)
    )


def lay_out(bucket: Bucket, members: Sequence[Member], spare: int) -> Layout:
    """Place images in a shape; ``spare`` is the slot of what fills up."""
    guided = [member for member in members if member.is_guided]
    rows = [(m.slot, m.slot, 0) for m in members] + [(m.null, m.slot, 1) for m in guided]
    rows += [(spare, spare, 0)] * (bucket.rows - len(rows))
    slots, owners, is_null = map(list, zip(*rows, strict=True))
    images = [member.slot for member in members]
    null_rows = {member.slot: len(members) + i for i, member in enumerate(guided)}
    partners = [null_rows.get(slot, row) for row, slot in enumerate(images)]
    left = range(len(members), bucket.images)
    return Layout(slots, owners, is_null, images + [spare] * len(left), [*partners, *left])
