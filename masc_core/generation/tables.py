"""What is known of the images of a batch: tables with a row per slot, on the model's device.

The last row belongs to whatever fills a step up; its content means nothing.

Legend: n images, S slots, L positions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.sampling.in_cluster import ALL_MODES
from masc_core.sampling.params import SamplingParams

_NOBODY = SamplingParams(class_id=0, cfg_scale=1.0, seed=0)


class BatchParams(NamedTuple):
    """Sampling parameters of images, a column each, (n,) or (S + 1,)."""

    seed: Tensor  # int64
    class_id: Tensor  # int64
    top_k: Tensor  # int64
    decoding: Tensor  # int64, see `masc_core.sampling.in_cluster.ALL_MODES`
    cfg_scale: Tensor  # float32
    temperature: Tensor  # float32
    top_p: Tensor  # float64


class Tables(NamedTuple):
    """Everything that a step reads and writes besides the model's cache.

    Attributes
    ----------
    params : (S + 1,) each
    position : int64 (S + 1,), to be drawn next
    token : int64 (S + 1,), drawn last
    finite : bool (S + 1,), whether all logits so far were
    codes : int64 (S + 1, L)
    entropies : float32 (S + 1, L), bits
    """

    params: BatchParams
    position: Tensor
    token: Tensor
    finite: Tensor
    codes: Tensor
    entropies: Tensor

    @classmethod
    def empty(cls, num_slots: int, length: int, device: torch.device) -> Tables:
        """Tables for S slots; all rows are of images that could be drawn."""
        num = num_slots + 1
        return cls(
            unpack_params(pack_params([_NOBODY] * num).to(device)),
            position=torch.zeros(num, dtype=torch.int64, device=device),
            token=torch.zeros(num, dtype=torch.int64, device=device),
            finite=torch.ones(num, dtype=torch.bool, device=device),
            codes=torch.zeros(num, length, dtype=torch.int64, device=device),
            entropies=torch.zeros(num, length, dtype=torch.float32, device=device),
        )

    def put(self, slots: Tensor, params: BatchParams) -> None:
        """Let images start in the slots, int64 (n,)."""
        for table, column in zip(self.params, params, strict=True):
            table[slots] = column
        self.position[slots] = 0
        self.finite[slots] = True


def pack_params(specs: Sequence[SamplingParams]) -> Tensor:
    """Parameters of n images as one int64 (7, n), which is one copy to a device.

    The decodings must be known; `InClusterDecoder.check` refuses others.
    """
    integers = [
        [spec.seed for spec in specs],
        [spec.class_id for spec in specs],
        [spec.top_k for spec in specs],
        [ALL_MODES[spec.decoding] for spec in specs],
    ]
    floats = [
        [spec.cfg_scale for spec in specs],
        [spec.temperature for spec in specs],
        [spec.top_p for spec in specs],
    ]
    bits = torch.tensor(floats, dtype=torch.float64).view(torch.int64)
    return torch.cat([torch.tensor(integers, dtype=torch.int64), bits])


def unpack_params(packed: Tensor) -> BatchParams:
    """What `pack_params` packed, int64 (7, n)."""
    seed, class_id, top_k, decoding = packed[:4].unbind()
    cfg_scale, temperature, top_p = packed[4:].view(torch.float64).unbind()
    floats = cfg_scale.float(), temperature.float(), top_p
    return BatchParams(seed, class_id, top_k, decoding, *floats)
