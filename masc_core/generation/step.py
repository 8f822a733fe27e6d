"""One step of a batch: every image draws its next position. The same code on every device.

It is tensors alone: nothing is read on the host, and no shape depends on a value. What is known of
images lies in tables with a row per slot; indices say which images are in this step. So a GPU can
record a step once for some numbers of rows and images, and replay it for any images; a CPU runs it
as it is. Between devices only the kernels differ (`masc_core.models.kv_cache`, `fused`).

What an image becomes depends on its `SamplingParams` alone: rows do not meet in any operation, and
random words belong to (seed, position). On a CPU a row has the same bits in any company, in
products of the packed weights for every number of rows that is a multiple of ``CPU_ROW_MULTIPLE``.

Legend: B images, R rows and n refined images of a step, all with filling; S slots; K clusters.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.device import keep_float32, new_stream
from masc_core.generation.tables import Tables
from masc_core.models.compiled import Work, compile_part
from masc_core.models.gpt import GPT, Block, Prediction
from masc_core.models.kv_cache import KVCache, KVLayer, Rows
from masc_core.sampling.in_cluster import REFINE, InClusterDecoder
from masc_core.sampling.refinement import Refinement
from masc_core.sampling.rng import code_bits, gumbel
from masc_core.sampling.sampler import Sampled, sample

# oneDNN is slower with two rows, and does not keep a row's bits for every other number of them.
CPU_ROW_MULTIPLE = 4


class Indices(NamedTuple):
    """Who is in a step, all int64.

    Attributes
    ----------
    slots : (R,), where each row is in the cache
    owners : (R,), slot of the image that the row belongs to
    is_null : (R,), 1 where the row is of the null class, else 0
    images : (B,), slots of the images, whose rows are the first B
    partners : (B,), each one's row of the null class; its own row where it is not guided
    refined : (n,), which of the B images the refiner looks at
    """

    slots: Tensor
    owners: Tensor
    is_null: Tensor
    images: Tensor
    partners: Tensor
    refined: Tensor


class StepNoise(NamedTuple):
    """Random numbers of a step: float32 (B, K) for clusters, int64 (B,) for codes."""

    gumbel: Tensor
    bits: Tensor


class Step:
    """Draws one position of the images of a step, and writes it into the tables.

    Parameters
    ----------
    model : in evaluation mode; its weights are laid out for steps (`GPT.pack`)
    decoder : on the model's device
    num_slots : S
    compiled : whether `torch.compile` makes kernels of the parts. All layers share one part, which
        is compiled for the first number of rows and then once more for all others.
    kernels : whether attention may take a compiled one; without either, only torch is needed

    Attributes
    ----------
    tables : what it reads and writes
    """

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        num_slots: int,
        *,
        compiled: bool = False,
        kernels: bool = True,
    ) -> None:
        model.pack()
        weight, config = model.output.weight, model.config
        self.tables = Tables.empty(num_slots, config.block_size, weight.device)
        self._model, self._decoder = model, decoder
        self._kernels = kernels
        self._cache = KVCache(config, num_slots + 1, weight.dtype, weight.device, kernels=kernels)
        self._blocks = list(zip(model.blocks, self._cache.layers, strict=True))
        self._num_slots = num_slots
        self._refinement: Refinement | None = None  # once it is needed
        self._side = new_stream(weight.device) if weight.is_cuda else None
        if compiled:
            keep_float32()
        sizes = _sizes(model, decoder, num_slots) if compiled else None

        def part(work: Work) -> Work:
            return compile_part(work, sizes) if compiled else work

        self._enter = part(enter)
        self._embed = part(model.embed)
        self._run_block = part(run_block)
        self._head = part(model.head)
        self._noise = part(noise_of)
        self._sample = part(sample_clusters)
        self._sample_filtered = part(sample_filtered)
        self._pick = part(pick_and_write)
        self._refine = part(refine_and_write)

    def __call__(self, indices: Indices, *, filters: bool) -> float:
        """Do the step.

        Parameters
        ----------
        indices : who is in it
        filters : whether any of the images asks for top-k or top-p

        Returns
        -------
        seconds in which clusters became codes; on a GPU those to enqueue that
        """
        tables = self.tables
        noise = self._noise_beside(indices)
        hidden, logits = self.predict(indices)
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)
        draw = self._sample_filtered if filters else self._sample
        sampled = draw(tables, indices, logits, noise.gumbel)
        started = time.perf_counter()
        to_write = tables, indices, self._decoder, sampled, noise.bits
        if len(indices.refined):
            self._refine(*to_write, self._refiner_at_work(), hidden)
        else:
            self._pick(*to_write)
        return time.perf_counter() - started

    def predict(self, indices: Indices) -> Prediction:
        """What the model makes of the rows, whose keys and values are then in the cache."""
        rows = Rows(*self._enter(self.tables, indices, self._model.config.num_classes))
        x, residual, cos_sin = self._embed(rows)
        for block, layer in self._blocks:
            x, residual = self._run_block(block, x, residual, cos_sin, rows, layer)
        return self._head(x, residual)

    def _noise_beside(self, indices: Indices) -> StepNoise:
        """Random numbers; on a GPU they are made while the model runs."""
        num_clusters = self._model.config.vocab_size
        if self._side is None:
            return self._noise(self.tables, indices, num_clusters)
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            return self._noise(self.tables, indices, num_clusters)

    def _refiner_at_work(self) -> Refinement:
        if self._refinement is None:
            decoder = self._decoder
            self._refinement = Refinement(
                decoder.refiner, decoder.prior, self._num_slots + 1, kernels=self._kernels
            )
        return self._refinement


def enter(tables: Tables, indices: Indices, null_class: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each row takes in, its position and its slot, all int64 (R,)."""
    owners = indices.owners
    positions = tables.position[owners]
    classes = torch.where(indices.is_null == 1, null_class, tables.params.class_id[owners])
    ids = torch.where(positions == 0, classes, tables.token[owners])
    return ids, positions, indices.slots


def run_block(
    block: Block, x: Tensor, residual: Tensor, cos_sin: Tensor, rows: Rows, layer: KVLayer
) -> tuple[Tensor, Tensor]:
    """One block of the model; see `Block.step`."""
    return block.step(x, residual, cos_sin, rows, layer)


def noise_of(tables: Tables, indices: Indices, num_clusters: int) -> StepNoise:
    """Random numbers for the images; see `masc_core.sampling.rng`."""
    seeds, positions = tables.params.seed[indices.images], tables.position[indices.images]
    return StepNoise(gumbel(seeds, positions, num_clusters), code_bits(seeds, positions))


def sample_clusters(tables: Tables, indices: Indices, logits: Tensor, noise: Tensor) -> Sampled:
    """Draw the images' clusters from the rows' logits (R, K), where none has filters."""
    return sample(*_to_sample(tables, indices, logits), None, None, noise)


def sample_filtered(tables: Tables, indices: Indices, logits: Tensor, noise: Tensor) -> Sampled:
    """The same where some images have filters."""
    top_k, top_p = tables.params.top_k[indices.images], tables.params.top_p[indices.images]
    return sample(*_to_sample(tables, indices, logits), top_k, top_p, noise)


def _to_sample(
    tables: Tables, indices: Indices, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with and without the class, scales and temperatures of the images."""
    images, params = indices.images, tables.params
    cond, uncond = logits[: images.shape[0]], logits[indices.partners]
    return cond, uncond, params.cfg_scale[images], params.temperature[images]


def pick_and_write(
    tables: Tables, indices: Indices, decoder: InClusterDecoder, sampled: Sampled, bits: Tensor
) -> None:
    """Turn clusters into codes, and note them."""
    decodings = tables.params.decoding[indices.images]
    write(tables, indices, sampled, decoder.pick(sampled.tokens, bits, decodings))


def refine_and_write(
    tables: Tables,
    indices: Indices,
    decoder: InClusterDecoder,
    sampled: Sampled,
    bits: Tensor,
    refinement: Refinement,
    hidden: Tensor,
) -> None:
    """The same where the refiner draws codes of some images, from hidden states (R, C)."""
    decodings, refined = tables.params.decoding[indices.images], indices.refined
    codes = decoder.pick(sampled.tokens, bits, decodings)
    slots = indices.images[refined]
    positions = tables.position[slots]
    before = tables.codes[slots, (positions - 1).clamp(min=0)]
    drawn = refinement.draw(
        hidden[refined],
        sampled.tokens[refined],
        Rows(before, positions, slots),
        bits[refined],
        tables.params.temperature[slots],
    )
    codes[refined] = torch.where(decodings[refined] == REFINE, drawn, codes[refined])
    write(tables, indices, sampled, codes)


def write(tables: Tables, indices: Indices, sampled: Sampled, codes: Tensor) -> None:
    """Note what was drawn, and let the images go to their next positions."""
    images = indices.images
    positions = tables.position[images]
    tables.codes[images, positions] = codes
    tables.entropies[images, positions] = sampled.entropies
    tables.finite[images] &= sampled.finite
    tables.token[images] = sampled.tokens
    # What fills up stays at the first position, where attention is shortest.
    nobody = len(tables.finite) - 1
    tables.position[images] = torch.where(images < nobody, positions + 1, 0)


def _sizes(model: GPT, decoder: InClusterDecoder, num_slots: int) -> Hashable:
    """All that the shapes of a step follow from, but for its rows and images."""
    weight, prior = model.output.weight, decoder.prior
    refiner = decoder.refiner.config if "refine" in decoder.decodings else None
    sizes = (model.config, refiner, prior.num_codes, int(prior.sizes.max()), num_slots)
    return sizes, weight.dtype, weight.device
