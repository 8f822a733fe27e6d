"""What of the product is compiled: all that touches names of its step and its models."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from masc_core.device import disable_tf32
from masc_core.generation.batch import StepShape
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.gpu_decoder import compile_decoder
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from tests.gpu_compile.gpu import DEVICE
from worker.engine.cuda_graphs import GraphBatch

NUM_CODES, NUM_CLUSTERS, POSITIONS = 16384, 8192, 256
ROWS = (2, 4, 32, 256)  # of the shapes that are captured
LAYERS = 2  # all of them share their graphs
EACH_LAYER = "run_block"  # the part that is called once a layer
# (head size, heads, positions): LlamaGen's sizes, the refiner's, the shipped model's and the tests'
HEADS = [
    (64, 16, 256), (64, 16, 576), (100, 32, 256), (128, 4, 256), (64, 4, 64),
    (80, 16, 64), (32, 4, 64), (20, 3, 144), (12, 2, 16), (8, 2, 16), (4, 2, 16),
]  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """A model to serve.

    Attributes
    ----------
    config : of the transformer
    refines : whether there is a refiner
    dtype : of the weights
    largest : codes of the largest cluster
    has_partition : whether clusters of clusters have entropies and filters
    """

    config: GPTConfig
    refines: bool = True
    dtype: torch.dtype = torch.bfloat16
    largest: int = 100
    has_partition: bool = False

    @classmethod
    def named(cls, name: str, dtype: torch.dtype = torch.bfloat16) -> Sizes:
        """One of LlamaGen's."""
        return cls(GPTConfig.named(name, vocab_size=NUM_CLUSTERS), dtype=dtype)

    @classmethod
    def of_width(cls, width: int, *, refines: bool, largest: int = 100) -> Sizes:
        """A small one."""
        return cls(
            GPTConfig(96, width, 2, 2, num_classes=5, block_size=16), refines, largest=largest
        )


class Captured:
    """A batch of a model that is not there.

    Parameters
    ----------
    sizes : of the model; it has ``LAYERS`` layers
    capacity : rows
    """

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        self.batch = GraphBatch(*_model(sizes), capacity)
        self.cache_size = capacity * sizes.config.dim * sizes.config.block_size

    def prepare(self) -> Iterator[StepShape]:
        """Capture some shapes of a step, small and large, one after the other."""
        chosen = [shape for shape in self.batch._shapes if shape.rows in ROWS]
        for shape in chosen:
            with torch.inference_mode():
                self.batch._capture(shape)
            yield shape


def decode_images(batch: int) -> None:
    """Compile and call the decoder of VQ-16 on a batch of codes, as `GPUDecoder` does."""
    with torch.device(DEVICE):
        tokenizer = VQModel(VQConfig()).eval().requires_grad_(False)
        codes = torch.zeros(batch, POSITIONS, dtype=torch.int64)
    disable_tf32()  # as a worker does
    convert_conv2d_weight_memory_format(tokenizer.decoder, torch.channels_last)
    with torch.inference_mode():
        latents = tokenizer.latents(codes, 16).to(memory_format=torch.channels_last)
        compile_decoder(tokenizer.decoder)(latents)


def _model(sizes: Sizes) -> tuple[GPT, CodeSampler]:
    config = replace(sizes.config, n_layer=LAYERS)
    num_codes = 2 * config.vocab_size + sizes.largest
    labels = np.arange(num_codes) % config.vocab_size
    labels[: sizes.largest] = 0
    prior = ClusterMap.from_labels(labels)
    with torch.device(DEVICE), _default(sizes.dtype):
        model = GPT(config).eval().requires_grad_(False)
        refiner = (
            Refiner(RefinerConfig(num_codes, config.vocab_size, config.dim, config.block_size))
            .eval()
            .requires_grad_(False)
            if sizes.refines
            else None
        )
    counts = np.ones(num_codes, dtype=np.int64)
    partition = ClusterMap.from_labels(prior.labels // 128) if sizes.has_partition else None
    return model, CodeSampler(prior, counts, DEVICE, refiner, coarse_partition=partition)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
