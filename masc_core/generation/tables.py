"""The parameters of images as columns, and the draw of their next clusters.

Whoever batches images keeps these columns, one entry an image or one a slot. Every image may have
parameters of its own; nothing loops over images.
This module does not know about models, rows or slots.

Legend: B images, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import ALL_MODES
from masc_core.sampling import entropy_bits, heat


class ImageColumns(NamedTuple):
    """A column a parameter, each (B,)."""

    seeds: Tensor  # int64
    classes: Tensor  # int64
    scales: Tensor  # float32
    temperatures: Tensor  # float32
    top_k: Tensor  # int64
    top_p: Tensor  # float64
    decodings: Tensor  # int64
    positions: Tensor  # int64, to be drawn next
    tokens: Tensor  # int64, drawn last

    def of(self, images: Tensor) -> ImageColumns:
        """Columns of some images, int64 (n,), in that order."""
        return ImageColumns(*(column[images] for column in self))

    def followed_by(self, others: ImageColumns) -> ImageColumns:
        """Columns of these images and of others behind them."""
        return ImageColumns(*map(torch.cat, zip(self, others, strict=True)))


class Heated(NamedTuple):
    """Logits that are ready to be filtered and drawn from.

    Attributes
    ----------
    logits : float32 (B, K)
    entropies : float32 (B,), bits; of the guided distribution before temperature and filters
    finite : bool (B,), whether the guided logits are
    """

    logits: Tensor
    entropies: Tensor
    finite: Tensor


def columns_of(specs: Sequence[ImageSpec], device: torch.device) -> ImageColumns:
    """Columns of images at their first position.

    Their decodings must be known; `masc_core.in_cluster.InClusterDecoder.modes` refuses others.
    """

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        made = torch.tensor(values, dtype=dtype)
        # From pinned memory: any other copy would wait for the work under way.
        return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made

    zeros = [0] * len(specs)
    return ImageColumns(
        seeds=column([spec.seed for spec in specs], torch.int64),
        classes=column([spec.class_id for spec in specs], torch.int64),
        scales=column([spec.cfg_scale for spec in specs], torch.float32),
        temperatures=column([spec.temperature for spec in specs], torch.float32),
        top_k=column([spec.top_k for spec in specs], torch.int64),
        top_p=column([spec.top_p for spec in specs], torch.float64),
        decodings=column([ALL_MODES[spec.decoding] for spec in specs], torch.int64),
        positions=column(zeros, torch.int64),
        tokens=column(zeros, torch.int64),
    )


def heated(logits: Tensor, temperatures: Tensor) -> Heated:
    """Guided logits (B, K) divided by their temperatures, and what is told of them before."""
    return Heated(heat(logits, temperatures), entropy_bits(logits), logits.isfinite().all(1))
