"""What each code looks like: the pixels it gives on average among random neighbours.

A decoder mixes neighbours, so a code has no pixels of its own. A grid filled with one code is no
answer: no decoder was trained on such grids, and most of what tells codes apart, edges above all,
is lost in them. Instead all V codes are shuffled into grids, the grids are decoded, and every code
keeps the f x f pixels of its position. The part of them that is linear in the eight neighbours,
fitted over all positions by least squares, is taken off (a control variate: its expectation is the
same for all codes, so only the noise goes), and the mean over several shuffles is the patch.

Four shuffles come close to sixteen (docs/results/README.md). Colours are paler than in images,
where neighbours agree. The neighbours owe nothing to the tree: were they chosen among similar
codes, patches of one cluster would look alike by construction.

Legend: V codes, E code dimensions, B grids, N = 64 B positions, f pixels a side of a position,
P = 9 (E + 1) numbers that describe a position's surroundings.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.errors import ConfigError, NonFiniteError
from masc_core.images import Pixels
from masc_core.models.gigatok import GigaTok
from masc_core.models.vq import VQModel, to_uint8
from masc_core.progress import ProgressCallback, no_progress

GRID = 8  # positions a side
LEAST_GRIDS = 16  # a shuffle, so that a small codebook has enough positions to fit to


@torch.inference_mode()
def code_patches(
    model: VQModel,
    *,
    shuffles: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    report: ProgressCallback = no_progress,
) -> Pixels:
    """Decode every code among several random neighbourhoods and average; uint8 (V, f, f, 3).

    Parameters
    ----------
    model : a tokenizer in evaluation mode; its encoder is not used
    shuffles : of the codebook, >= 1
    seed : of the shuffles
    batch_size : grids decoded at once

    Raises
    ------
    ConfigError : the tokenizer is 1-D
    NonFiniteError : the decoder made a NaN or an infinity
    """
    if isinstance(model, GigaTok):
        raise ConfigError("tokenizer: codes of a 1-D tokenizer have no place, so no picture either")
    num_codes, factor = model.config.num_codes, model.config.factor
    generator = torch.Generator().manual_seed(seed)
    grids = torch.cat([_shuffle(num_codes, generator) for _ in range(shuffles)])
    batches = torch.split(grids, batch_size)
    sums = _Sums(num_codes, 9 * (model.config.code_dim + 1), 3 * factor**2)
    for i, codes in enumerate(batches):
        quant = model.quantize.lookup(codes.to(model.quantize.embedding.weight.device))
        images = model.decode(quant)
        if not images.isfinite().all():
            raise NonFiniteError("the VQ decoder produced a NaN or an infinity")
        sums.add(codes.flatten(), _surroundings(quant), _tiles(to_uint8(images), factor))
        report(i + 1, len(batches), f"{num_codes} codes, {shuffles} times")
    patches = sums.patches().round().clamp(0, 255).to(torch.uint8)
    return patches.view(num_codes, factor, factor, 3).numpy()


def enlarge(patches: Pixels, side: int) -> Pixels:
    """Repeat the pixels of patches (V, f, f, 3) until a patch is at least ``side`` a side."""
    times = -(-side // patches.shape[1])
    return np.repeat(np.repeat(patches, times, axis=1), times, axis=2)


class _Sums:
    """Sums over positions, float64 on the CPU; ``num_inputs`` is P, ``num_outputs`` 3 f f."""

    def __init__(self, num_codes: int, num_inputs: int, num_outputs: int) -> None:
        self.counts = torch.zeros(num_codes, 1, dtype=torch.float64)
        self.inputs = torch.zeros(num_codes, num_inputs, dtype=torch.float64)
        self.outputs = torch.zeros(num_codes, num_outputs, dtype=torch.float64)
        self.gram = torch.zeros(num_inputs, num_inputs, dtype=torch.float64)
        self.cross = torch.zeros(num_inputs, num_outputs, dtype=torch.float64)

    def add(self, codes: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Add positions: codes (N,), surroundings (N, P), pixels (N, 3 f f)."""
        self.counts.index_add_(0, codes, torch.ones(len(codes), 1, dtype=torch.float64))
        self.inputs.index_add_(0, codes, inputs)
        self.outputs.index_add_(0, codes, outputs)
        self.gram += inputs.T @ inputs
        self.cross += inputs.T @ outputs

    def patches(self) -> Tensor:
        """Mean pixels of each code, (V, 3 f f), without what is linear in its neighbours."""
        effects = torch.linalg.lstsq(self.gram, self.cross, driver="gelsd").solution
        effects[4::9] = 0.0  # the code itself: what is to be kept
        mean = self.inputs.sum(0) / self.counts.sum()
        surplus = self.inputs / self.counts - mean
        return self.outputs / self.counts - surplus @ effects


def _shuffle(num_codes: int, generator: torch.Generator) -> Tensor:
    """All codes in random order, again and again until grids (B, 8, 8) are full and enough."""
    num_positions = max(LEAST_GRIDS, -(-num_codes // GRID**2)) * GRID**2
    rounds = -(-num_positions // num_codes)
    orders = [torch.randperm(num_codes, generator=generator) for _ in range(rounds)]
    return torch.cat(orders)[:num_positions].view(-1, GRID, GRID)


def _surroundings(quant: Tensor) -> Tensor:
    """Code vectors (B, E, 8, 8) of a position and its neighbours, each with a one, as (N, P).

    Beyond the border everything is zero, the one included. Of nine consecutive numbers the fifth is
    the position's own.
    """
    present = torch.cat([quant, torch.ones_like(quant[:, :1])], dim=1)
    windows = F.unfold(present, kernel_size=3, padding=1)  # (B, P, 64)
    return windows.transpose(1, 2).flatten(0, 1).cpu().double()


def _tiles(images: Tensor, side: int) -> Tensor:
    """Pixels of images (B, 8 f, 8 f, 3) by position, (N, 3 f f)."""
    tiles = images.view(-1, GRID, side, GRID, side, 3).transpose(2, 3)
    return tiles.reshape(-1, 3 * side**2).cpu().double()
