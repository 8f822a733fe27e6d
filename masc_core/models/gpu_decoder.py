"""The VQ decoder on a GPU: `Decoder`, compiled for a few sizes of batch.

Run as it is, the decoder copies all it computes twice a block: convolutions want channels last, but
group normalisation returns channels first. Compiled, norm and swish are kernels that read and write
in the convolutions' order. A batch is filled up to the next size, so that little is compiled, and a
size keeps its kernels, whoever else is in the batch.

Convolutions take TF32's 10 bits of their factors; everything between them is float32, which no
weights overflow. float16 is as exact, and half the bytes. bfloat16 is not exact enough: 42 dB of
the golden decoder, where 50 are asked for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from masc_core.models.compiled import compile_part
from masc_core.models.conv import Decoder

SIZES = (1, 2, 4, 8, 16)

Backend = str | Callable[..., Any]

logger = logging.getLogger(__name__)


class GPUDecoder:
    """Decodes whole images compiled, and previews, whose height varies, as they are.

    Parameters
    ----------
    decoder : on a CUDA device; its weights are put in another order, their values stay
    dtype : float32 (TF32 in convolutions) or float16
    backend : of `torch.compile`
    """

    def __init__(
        self, decoder: Decoder, dtype: torch.dtype = torch.float32, backend: Backend = "inductor"
    ) -> None:
        # The default, but on purpose: with all of float32's bits convolutions take 8 times as long.
        torch.backends.cudnn.allow_tf32 = True
        self._decoder = decoder.to(dtype)
        convert_conv2d_weight_memory_format(self._decoder, torch.channels_last)
        self._compiled = compile_decoder(self._decoder, backend)
        self._dtype = dtype

    def __call__(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w), B at most 16, to float32 (B, 3, H, W)."""
        z = z.to(self._dtype)
        images = self._decode_whole(z) if z.shape[2] == z.shape[3] else self._decoder(z)
        return images.float()

    def _decode_whole(self, z: Tensor) -> Tensor:
        size = min(size for size in SIZES if size >= len(z))
        padded = z.new_zeros(size, *z.shape[1:]).to(memory_format=torch.channels_last)
        padded[: len(z)] = z
        try:
            with warnings.catch_warnings():
                # The few products of the attention keep float32's bits: a process has one switch
                # for them, and the transformer's are to be exact.
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                images = self._compiled(padded)
        except torch.OutOfMemoryError:  # it would not fit uncompiled, either
            raise
        except Exception:  # another driver or compiler: slow images are better than none
            if self._compiled is self._decoder:
                raise
            logger.exception("the VQ decoder cannot be compiled: images are decoded SLOWLY")
            self._compiled = self._decoder
            images = self._decoder(padded)
        return images[: len(z)]


def compile_decoder(decoder: Decoder, backend: Backend = "inductor") -> Callable[[Tensor], Tensor]:
    """Return the decoder as a GPU runs it: one graph for each size of batch, weights as inputs."""
    sizes = tuple((*weight.shape, weight.dtype, weight.device) for weight in decoder.parameters())
    return compile_part(decoder.forward, sizes, dynamic=False, backend=backend)
