"""The few shapes that steps are recorded for; a batch takes the smallest one that holds it."""

from __future__ import annotations

from collections.abc import Sequence

from masc_core.generation.batch import Slot, StepShape, has_filters, num_rows, refined_images

# One row costs what two cost, and would take other kernels than they do.
ROWS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)


def buckets(
    capacity: int, *, only_largest: bool = False, with_refiner: bool = False
) -> list[StepShape]:
    """All shapes for a capacity in rows, smaller ones first.

    A shape has room for half as many images as rows, if nearly all are guided, or for as many; its
    refiner looks at all of them or at none.

    Parameters
    ----------
    capacity : rows that images may take
    only_largest : let every step have the shape of a full batch of images that are not guided
    with_refiner : whether images can ask for the refiner
    """
    largest = max(2, capacity + capacity % 2)
    sizes = [(largest, largest)]
    if not only_largest:
        heights = [*(rows for rows in ROWS if rows < largest), largest]
        sizes = [(rows, images) for rows in heights for images in (rows // 2, rows)]
    return [
        StepShape(rows, images, filters, refined)
        for rows, images in sizes
        for filters in (False, True)
        for refined in ((0, images) if with_refiner else (0,))
    ]


def choose(fitting: Sequence[StepShape], slots: Sequence[Slot]) -> StepShape:
    """Return the first shape, of those in ascending order, that holds the images."""
    rows = num_rows(slots)
    kind = has_filters(slots), bool(refined_images(slots))
    return next(
        shape
        for shape in fitting
        if shape.rows >= rows and shape.images >= len(slots)
        if (shape.filters, bool(shape.refined)) == kind
    )
