"""The VQ decoder on a CPU: what `Decoder` computes, in a fraction of the time.

Images go one by one, channels last, through kernels that divide their work in the same way for any
number of threads: the bytes of an image are the same alone and among others, on one core and many.

Legend: H, W pixels, C channels, n rows of a matrix, mostly pixels in raster order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from masc_core.arrays import Float32Array
from masc_core.models.conv import (
    NORM_EPSILON,
    NORM_GROUPS,
    AttentionBlock,
    Decoder,
    Level,
    ResidualBlock,
    Upsample,
)
from masc_core.models.gemm_microkernel import COLUMNS, ROWS, pack, tile_product
from masc_core.models.winograd import Convolution, convolve
from masc_core.numba_jit import njit_unchecked

# Multiplications below which handing work to another thread, some 50 microseconds, does not pay.
WORTH_A_THREAD = 1 << 24
# Rows of pixels that are added up by themselves; rows of a matrix that are multiplied together.
SUMMED, MULTIPLIED = 16, 8 * ROWS

six_rows, one_row = tile_product(ROWS), tile_product(1)


class CPUDecoder:
    """A decoder with its weights as its kernels want them.

    Parameters
    ----------
    decoder : in float32 on the CPU; what happens to its weights later has no effect
    """

    def __init__(self, decoder: Decoder) -> None:
        self._conv_in = _convolution(decoder.conv_in)
        self._blocks = [_prepared(block) for block in _blocks(decoder)]
        self._norm_out, self._conv_out = _Norm.of(decoder.norm_out), _convolution(decoder.conv_out)

    def __call__(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) to (B, 3, H, W), on as many threads as torch has."""
        images = [self._decode(image.permute(1, 2, 0).numpy()) for image in z]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _decode(self, z: Float32Array) -> Float32Array:
        missing = self._conv_in.weights.shape[2] - z.shape[2]
        x = _convolve(np.pad(z, ((0, 0), (0, 0), (0, missing))), self._conv_in)
        for block in self._blocks:
            x = block(x)
        return _convolve(x, self._conv_out, norm=self._norm_out)[:, :, :3]


def _blocks(decoder: Decoder) -> Iterator[nn.Module]:
    """Yield what stands between the first convolution and the last, in order."""
    yield from decoder.mid
    for level in cast("Iterable[Level]", decoder.conv_blocks):
        yield from level.blocks()
        if isinstance(level.upsample, Upsample):
            yield level.upsample


def _prepared(block: nn.Module) -> Callable[[Float32Array], Float32Array]:
    match block:
        case ResidualBlock():
            return _Residual.of(block)
        case AttentionBlock():
            return _Attention.of(block)
        case Upsample():
            conv = _convolution(block.conv)
            return lambda x: _convolve(x, conv, factor=2)
    raise TypeError(f"no kernel for {type(block).__name__}")


def _convolution(conv: nn.Conv2d) -> Convolution:
    return Convolution.of(*_weights(conv))


def _weights(layer: nn.Conv2d | nn.GroupNorm) -> tuple[Float32Array, Float32Array]:
    weight, bias = (parameter.detach().numpy() for parameter in layer.parameters())
    return weight, bias


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Float32Array
    bias: Float32Array

    @classmethod
    def of(cls, norm: nn.GroupNorm) -> Self:
        return cls(*_weights(norm))

    def affine(self, x: Float32Array) -> Float32Array:
        """Factor and summand (2, C) of each channel of x (H, W, C)."""
        height, width, channels = x.shape
        sums = np.empty((-(-height // SUMMED), 2, channels))
        _split(_add_up, x.size, x, sums)
        return _affine(sums, height * width, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A 1x1 convolution: panels of a matrix (C, N), and N summands."""

    panels: Float32Array
    bias: Float32Array

    @classmethod
    def of(cls, *convs: nn.Conv2d) -> Self:
        """Join the outputs of some convolutions of the same input."""
        weights, biases = zip(*map(_weights, convs), strict=True)
        return cls(pack(np.concatenate(weights)[:, :, 0, 0].T), np.concatenate(biases))

    def __call__(self, x: Float32Array) -> Float32Array:
        """(n, C) to (n, N)."""
        return _multiplied(x, self.panels) + self.bias


@dataclass(frozen=True, slots=True)
class _Residual:
    norms: tuple[_Norm, _Norm]
    convs: tuple[Convolution, Convolution]
    shortcut: _Linear | None

    @classmethod
    def of(cls, block: ResidualBlock) -> Self:
        shortcut = block.nin_shortcut
        return cls(
            norms=(_Norm.of(block.norm1), _Norm.of(block.norm2)),
            convs=(_convolution(block.conv1), _convolution(block.conv2)),
            shortcut=_Linear.of(shortcut) if isinstance(shortcut, nn.Conv2d) else None,
        )

    def __call__(self, x: Float32Array) -> Float32Array:
        h = _convolve(x, self.convs[0], norm=self.norms[0])
        if self.shortcut:
            x = self.shortcut(x.reshape(-1, x.shape[2])).reshape(h.shape)
        return _convolve(h, self.convs[1], norm=self.norms[1], add_to=x)


@dataclass(frozen=True, slots=True)
class _Attention:
    norm: _Norm
    qkv: _Linear
    projection: _Linear

    @classmethod
    def of(cls, block: AttentionBlock) -> Self:
        return cls(
            norm=_Norm.of(block.norm),
            qkv=_Linear.of(block.q, block.k, block.v),
            projection=_Linear.of(block.proj_out),
        )

    def __call__(self, x: Float32Array) -> Float32Array:
        factor, summand = self.norm.affine(x)
        rows = x.reshape(-1, x.shape[2])
        q, k, v = np.split(self.qkv(rows * factor + summand), 3, axis=1)
        scores = _multiplied(q * np.float32(len(factor) ** -0.5), pack(k.T))[:, : len(rows)]
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return x + self.projection(_multiplied(weights, pack(v))).reshape(x.shape)


def _convolve(
    x: Float32Array,
    conv: Convolution,
    *,
    norm: _Norm | None = None,
    factor: int = 1,
    add_to: Float32Array | None = None,
) -> Float32Array:
    """Convolve x (H / factor, W / factor, C), after norm and swish if there is a norm.

    The result goes into `add_to` (H, W, N), if given, which may be what was normalised before.
    """
    height, width = x.shape[0] * factor, x.shape[1] * factor
    out = np.empty((height, width, len(conv.bias)), np.float32) if add_to is None else add_to
    affine = np.empty((2, 0), np.float32) if norm is None else norm.affine(x)
    scratch = np.empty((torch.get_num_threads(), conv.scratch_size(height, width)), np.float32)
    rows, add, work = conv.tile_rows(height, width), add_to is not None, out.size * x.shape[2]
    _split(convolve, work, x, affine, factor, conv, rows, add, out, scratch)
    return out


def _multiplied(x: Float32Array, panels: Float32Array) -> Float32Array:
    """A matrix (n, C) times panels (N / 16, C, 16), as (n, N)."""
    out = np.empty((len(x), len(panels) * COLUMNS), np.float32)
    _split(_multiply, out.size * x.shape[1], np.ascontiguousarray(x), panels, out)
    return out


def _split(function: Callable[..., None], work: int, *arguments: Any) -> None:  # noqa: ANN401
    """Call a kernel with its part and the number of parts at last, one a thread."""
    parts = torch.get_num_threads() if work >= WORTH_A_THREAD else 1
    others = [_pool().submit(function, *arguments, part, parts) for part in range(1, parts)]
    function(*arguments, 0, parts)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads of ours: OpenMP's would spin against torch's own after every kernel."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vq-decoder")


@njit_unchecked
def _multiply(
    x: Float32Array, panels: Float32Array, out: Float32Array, part: int, parts: int
) -> None:
    depth, n = x.shape[1], out.shape[1]
    for start in range(part * MULTIPLIED, len(x), parts * MULTIPLIED):
        stop = min(start + MULTIPLIED, len(x))
        for p in range(len(panels)):
            panel = (panels, p * depth * COLUMNS, COLUMNS)
            row = start
            while row + ROWS <= stop:
                rows, to = (x, row * depth, depth), (out, row * n + p * COLUMNS, n)
                six_rows(rows, panel, to, depth)
                row += ROWS
            for last in range(row, stop):
                rows, to = (x, last * depth, depth), (out, last * n + p * COLUMNS, n)
                one_row(rows, panel, to, depth)


@njit_unchecked
def _add_up(x: Float32Array, sums: npt.NDArray[np.float64], part: int, parts: int) -> None:
    """Sums and sums of squares of every channel, of so many rows of pixels each."""
    for block in range(part, len(sums), parts):
        total, squares = sums[block]
        total[:] = 0
        squares[:] = 0
        for y in range(block * SUMMED, min(len(x), (block + 1) * SUMMED)):
            for column in range(x.shape[1]):
                pixel = x[y, column]
                for c in range(len(pixel)):
                    value = np.float64(pixel[c])
                    total[c] += value
                    squares[c] += value * value


@njit_unchecked
def _affine(
    sums: npt.NDArray[np.float64], pixels: int, weight: Float32Array, bias: Float32Array
) -> Float32Array:
    """``x factor + summand`` is group normalisation."""
    channels = len(weight)
    size = channels // NORM_GROUPS
    affine = np.empty((2, channels), np.float32)
    for first in range(0, channels, size):
        mean = square = 0.0
        for block in range(len(sums)):
            for c in range(first, first + size):
                mean += sums[block, 0, c]
                square += sums[block, 1, c]
        mean /= size * pixels
        variance = max(square / (size * pixels) - mean * mean, 0.0)
        for c in range(first, first + size):
            affine[0, c] = weight[c] / np.sqrt(variance + NORM_EPSILON)
            affine[1, c] = bias[c] - mean * affine[0, c]
    return affine
