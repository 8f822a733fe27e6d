"""Random numbers of images under way, made for several positions at once.

A call of the generator costs the same hundred small operations for one position as for many, so
numbers are made ahead: for one position after images have joined or left, then for two, four, ...
Which numbers they are does not depend on that (`masc_core.philox`).

Legend: B images, K clusters, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masc_core.philox import code_bits, gumbel

AT_ONCE = 1 << 17  # numbers for clusters: more take longer than the calls that they save


class Noise:
    """Random numbers for clusters and for codes.

    Parameters
    ----------
    num_clusters : K
    """

    def __init__(self, num_clusters: int) -> None:
        self._num_clusters = num_clusters
        self.forget()

    def forget(self) -> None:
        """The images are others from now on."""
        self._ahead = 1
        self._left: list[tuple[Tensor, Tensor]] = []  # the next position last

    def advance(self) -> None:
        """Every image is at its next position from now on."""
        self._left.pop()

    def of(self, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers for where the images are.

        Parameters
        ----------
        seeds, positions : int64 (B,)

        Returns
        -------
        float32 (B, K), see `gumbel`; int64 (B,), see `code_bits`
        """
        if not self._left:
            self._make(seeds, positions)
        return self._left[-1]

    def _make(self, seeds: Tensor, positions: Tensor) -> None:
        most = max(1, AT_ONCE // (self._num_clusters * len(seeds)))
        num, self._ahead = min(self._ahead, most), min(2 * self._ahead, most)
        ahead = (positions + torch.arange(num, device=seeds.device)[:, None]).flatten()  # (P B,)
        repeated = seeds.repeat(num)
        noise = gumbel(repeated, ahead, self._num_clusters).view(num, len(seeds), -1)
        bits = code_bits(repeated, ahead).view(num, -1)
        self._left = [(noise[p], bits[p]) for p in reversed(range(num))]
