"""One step of a batch: every image draws its next position. The same code on every device.

It is tensors alone: nothing is read on the host, and no shape depends on a value. What is known of
images lies in tables with a row per slot; the inputs say which images are in this step. So a GPU
can capture a step once for some numbers of rows and images, and replay it for any images; a CPU
runs it as it is. Between devices only the kernels differ (`masc_core.models.kv_cache`, `gpt`).

What an image becomes depends on its `SamplingParams` alone: no operation mixes rows, and random
words belong to (seed, position). On a CPU a row has the same bits in any batch; products
of packed weights keep them for every number of rows that is a multiple of ``CPU_ROW_MULTIPLE``.

Legend: B images, R rows and n refined images of a step, all with padding; S slots, L positions of
an image, K clusters.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.device import disable_tf32, new_stream
from masc_core.models.compiled import Work, compile_part
from masc_core.models.gpt import GPT, Block, Prediction
from masc_core.models.kv_cache import KVCache, KVLayer, Rows
from masc_core.sampling.in_cluster import DECODING_IDS, REFINE, CodeSampler, RefinerSampler
from masc_core.sampling.params import SamplingParams
from masc_core.sampling.rng import code_bits, gumbel
from masc_core.sampling.sampler import Filters, Partition, Sampled, sample

# oneDNN is slower with two rows, and does not keep a row's bits for every other number of them.
CPU_ROW_MULTIPLE = 4

INTEGERS = ("seed", "class_id", "top_k", "decoding", "cluster_top_k")  # of `BatchParams`
FLOATS = ("temperature", "top_p", "cluster_top_p")

_PADDING = SamplingParams(class_id=0, cfg_scale=1.0, seed=0)


class BatchParams(NamedTuple):
    """Sampling parameters of images, (n,) or (S + 1,) each but for the guidance."""

    seed: Tensor  # int64
    class_id: Tensor  # int64
    top_k: Tensor  # int64
    decoding: Tensor  # int64, see `DECODING_IDS`
    cluster_top_k: Tensor  # int64
    cfg_scale: Tensor  # float32, of every position: (n, L) or (S + 1, L)
    temperature: Tensor  # float32
    top_p: Tensor  # float64
    cluster_top_p: Tensor  # float64


class Tables(NamedTuple):
    """What is known of the images of a batch, with a row per slot, on the model's device.

    The last row belongs to the padding of a step; its content means nothing.
    """

    params: BatchParams
    position: Tensor  # int64 (S + 1,), to be drawn next
    token: Tensor  # int64 (S + 1,), drawn last
    finite: Tensor  # bool (S + 1,), whether all logits so far were
    codes: Tensor  # int64 (S + 1, L)
    entropies: Tensor  # float32 (S + 1, L), bits
    cluster_entropies: Tensor  # the same of the partition's clusters; (S + 1, 0) without one

    @classmethod
    def empty(
        cls, num_slots: int, length: int, device: torch.device, *, has_partition: bool
    ) -> Tables:
        """Tables for S slots; all rows are of images that could be drawn."""
        num = num_slots + 1
        return cls(
            unpack_params(pack_params([_PADDING] * num, length).to(device)),
            position=torch.zeros(num, dtype=torch.int64, device=device),
            token=torch.zeros(num, dtype=torch.int64, device=device),
            finite=torch.ones(num, dtype=torch.bool, device=device),
            codes=torch.zeros(num, length, dtype=torch.int64, device=device),
            entropies=torch.zeros(num, length, dtype=torch.float32, device=device),
            cluster_entropies=torch.zeros(num, length if has_partition else 0, device=device),
        )

    def put(self, slots: Tensor, params: BatchParams) -> None:
        """Let images start in the slots, int64 (n,)."""
        for table, column in zip(self.params, params, strict=True):
            table[slots] = column
        self.position[slots] = 0
        self.finite[slots] = True


class StepInputs(NamedTuple):
    """Who is in a step, all int64."""

    slots: Tensor  # (R,), where each row is in the cache
    slot_of_row: Tensor  # (R,), slot of the image that the row belongs to
    is_uncond: Tensor  # (R,), 1 where the row is of the null class, else 0
    images: Tensor  # (B,), slots of the images, whose rows are the first B
    uncond_rows: Tensor  # (B,), each one's row of the null class; its own where it is not guided
    refined: Tensor  # (n,), which of the B images the refiner looks at


class StepNoise(NamedTuple):
    """Random numbers of a step: float32 (B, K) for clusters, int64 (B,) for codes."""

    gumbel: Tensor
    random_bits: Tensor


class Step:
    """Draws one position of the images of a step, and writes it into the tables.

    Parameters
    ----------
    model : in evaluation mode; its weights are laid out for steps (`GPT.pack`)
    code_sampler : on the model's device
    num_slots : S
    compiled : whether `torch.compile` makes kernels of the parts, for the first number of rows and
        then once more for all others
    kernels : whether attention may use numba's or Triton's; with neither, only torch is needed
    """

    def __init__(
        self,
        model: GPT,
        code_sampler: CodeSampler,
        num_slots: int,
        *,
        compiled: bool = False,
        kernels: bool = True,
    ) -> None:
        model.pack()
        weight, config = model.output.weight, model.config
        has_partition = code_sampler.coarse_partition is not None
        self.tables = Tables.empty(
            num_slots, config.block_size, weight.device, has_partition=has_partition
        )
        self._model, self._code_sampler = model, code_sampler
        self._kernels = kernels
        self._cache = KVCache(config, num_slots + 1, weight.dtype, weight.device, kernels=kernels)
        self._blocks = list(zip(model.blocks, self._cache.layers, strict=True))
        self._num_slots = num_slots
        self._refiner_sampler: RefinerSampler | None = None  # once it is needed
        self._side_stream = new_stream(weight.device) if weight.is_cuda else None
        if compiled:
            disable_tf32()
        sizes = _sizes(model, code_sampler, num_slots) if compiled else None

        def part(work: Work) -> Work:
            return compile_part(work, sizes) if compiled else work

        self._row_inputs = part(row_inputs)
        self._embed = part(model.embed)
        self._run_block = part(run_block)
        self._head = part(model.head)
        self._draw_noise = part(draw_noise)
        self._sample = part(sample_clusters)
        self._sample_filtered = part(sample_filtered)
        self._sample_code = part(sample_code_and_write)
        self._refine_code = part(refine_code_and_write)

    def __call__(self, inputs: StepInputs, *, has_filters: bool) -> float:
        """Do the step; return the seconds in which clusters became codes (on a GPU: to enqueue it).

        ``has_filters`` says whether any of the images has filters.
        """
        tables = self.tables
        noise = self._noise_on_side_stream(inputs)
        hidden, logits = self.predict(inputs)
        if self._side_stream is not None:
            torch.cuda.current_stream().wait_stream(self._side_stream)
        draw = self._sample_filtered if has_filters else self._sample
        sampled = draw(tables, inputs, logits, noise.gumbel, self._code_sampler.coarse_partition)
        started = time.perf_counter()
        arguments = tables, inputs, self._code_sampler, sampled, noise.random_bits
        if len(inputs.refined):
            self._refine_code(*arguments, self._lazy_refiner_sampler(), hidden)
        else:
            self._sample_code(*arguments)
        return time.perf_counter() - started

    def predict(self, inputs: StepInputs) -> Prediction:
        """What the model makes of the rows, whose keys and values are then in the cache."""
        rows = Rows(*self._row_inputs(self.tables, inputs, self._model.config.num_classes))
        x, branch, cos_sin = self._embed(rows)
        for block, layer in self._blocks:
            x, branch = self._run_block(block, x, branch, cos_sin, rows, layer)
        return self._head(x, branch)

    def _noise_on_side_stream(self, inputs: StepInputs) -> StepNoise:
        """Random numbers; on a GPU they are made while the model runs."""
        num_clusters = self._model.config.vocab_size
        if self._side_stream is None:
            return self._draw_noise(self.tables, inputs, num_clusters)
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            return self._draw_noise(self.tables, inputs, num_clusters)

    def _lazy_refiner_sampler(self) -> RefinerSampler:
        if self._refiner_sampler is None:
            code_sampler = self._code_sampler
            self._refiner_sampler = RefinerSampler(
                code_sampler.refiner, code_sampler.prior, self._num_slots + 1, kernels=self._kernels
            )
        return self._refiner_sampler


def row_inputs(
    tables: Tables, inputs: StepInputs, null_class: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What each row takes in, its position and its slot, all int64 (R,)."""
    slot_of_row = inputs.slot_of_row
    positions = tables.position[slot_of_row]
    classes = torch.where(inputs.is_uncond == 1, null_class, tables.params.class_id[slot_of_row])
    ids = torch.where(positions == 0, classes, tables.token[slot_of_row])
    return ids, positions, inputs.slots


def run_block(
    block: Block, x: Tensor, branch: Tensor, cos_sin: Tensor, rows: Rows, layer: KVLayer
) -> tuple[Tensor, Tensor]:
    """`Block.step` as a function, so that all layers share what is compiled."""
    return block.step(x, branch, cos_sin, rows, layer)


def draw_noise(tables: Tables, inputs: StepInputs, num_clusters: int) -> StepNoise:
    """Random numbers for the images; see `masc_core.sampling.rng`."""
    seeds, positions = tables.params.seed[inputs.images], tables.position[inputs.images]
    return StepNoise(gumbel(seeds, positions, num_clusters), code_bits(seeds, positions))


def sample_clusters(
    tables: Tables, inputs: StepInputs, logits: Tensor, noise: Tensor, partition: Partition | None
) -> Sampled:
    """Draw the images' clusters from the rows' logits (R, K), where none has filters."""
    return sample(*_logits_and_params(tables, inputs, logits), None, noise, partition)


def sample_filtered(
    tables: Tables, inputs: StepInputs, logits: Tensor, noise: Tensor, partition: Partition | None
) -> Sampled:
    """The same where some images have filters."""
    filters = Filters(*(getattr(tables.params, name)[inputs.images] for name in Filters._fields))
    return sample(*_logits_and_params(tables, inputs, logits), filters, noise, partition)


def _logits_and_params(
    tables: Tables, inputs: StepInputs, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `sample` takes first: cond, uncond, cfg_scale and temperature of the images."""
    images, params = inputs.images, tables.params
    cond, uncond = logits[: images.shape[0]], logits[inputs.uncond_rows]
    cfg_scale = params.cfg_scale[images, tables.position[images]]
    return cond, uncond, cfg_scale, params.temperature[images]


def sample_code_and_write(
    tables: Tables,
    inputs: StepInputs,
    code_sampler: CodeSampler,
    sampled: Sampled,
    random_bits: Tensor,
) -> None:
    """Turn clusters into codes, and note them."""
    decoding = tables.params.decoding[inputs.images]
    write(tables, inputs, sampled, code_sampler.sample_code(sampled.tokens, random_bits, decoding))


def refine_code_and_write(
    tables: Tables,
    inputs: StepInputs,
    code_sampler: CodeSampler,
    sampled: Sampled,
    random_bits: Tensor,
    refiner_sampler: RefinerSampler,
    hidden: Tensor,
) -> None:
    """The same where the refiner draws codes of some images, from hidden states (R, C)."""
    decoding, refined = tables.params.decoding[inputs.images], inputs.refined
    codes = code_sampler.sample_code(sampled.tokens, random_bits, decoding)
    slots = inputs.images[refined]
    positions = tables.position[slots]
    before = tables.codes[slots, (positions - 1).clamp(min=0)]
    drawn = refiner_sampler.draw(
        hidden[refined],
        sampled.tokens[refined],
        Rows(before, positions, slots),
        random_bits[refined],
        tables.params.temperature[slots],
    )
    codes[refined] = torch.where(decoding[refined] == REFINE, drawn, codes[refined])
    write(tables, inputs, sampled, codes)


def write(tables: Tables, inputs: StepInputs, sampled: Sampled, codes: Tensor) -> None:
    """Note what was drawn, and let the images go to their next positions."""
    images = inputs.images
    positions = tables.position[images]
    tables.codes[images, positions] = codes
    tables.entropies[images, positions] = sampled.entropies
    if sampled.cluster_entropies is not None:
        tables.cluster_entropies[images, positions] = sampled.cluster_entropies
    tables.finite[images] &= sampled.finite
    tables.token[images] = sampled.tokens
    # Padding stays at the first position, where attention is shortest.
    padding = len(tables.finite) - 1
    tables.position[images] = torch.where(images < padding, positions + 1, 0)


def _sizes(model: GPT, code_sampler: CodeSampler, num_slots: int) -> Hashable:
    """All that the shapes of a step follow from, but for its rows and images."""
    weight, prior = model.output.weight, code_sampler.prior
    refiner = code_sampler.refiner.config if "refine" in code_sampler.decodings else None
    coarse = code_sampler.coarse_partition
    num_coarse = coarse and coarse.num_clusters
    sizes = (model.config, refiner, prior.num_codes, int(prior.sizes.max()), num_coarse, num_slots)
    return sizes, weight.dtype, weight.device


def pack_params(params_list: Sequence[SamplingParams], num_positions: int) -> Tensor:
    """Parameters of n images as one int64 (8 + L, n), which is one copy to a device.

    `CodeSampler.check` refuses decodings that are not known.
    """
    images = [
        asdict(params) | {"decoding": DECODING_IDS[params.decoding]} for params in params_list
    ]
    integers = [[image[name] for image in images] for name in INTEGERS]
    floats = [
        [*(image[name] for name in FLOATS), *params.cfg_scales(num_positions)]
        for image, params in zip(images, params_list, strict=True)
    ]
    float_bits = torch.tensor(floats, dtype=torch.float64).T.contiguous().view(torch.int64)
    return torch.cat([torch.tensor(integers, dtype=torch.int64), float_bits])


def unpack_params(packed: Tensor) -> BatchParams:
    """What `pack_params` packed, int64 (8 + L, n)."""
    columns = dict(zip(INTEGERS, packed, strict=False))
    values = packed[len(INTEGERS) :].view(torch.float64)
    columns |= zip(FLOATS, values, strict=False)
    columns["temperature"] = columns["temperature"].float()
    return BatchParams(cfg_scale=values[len(FLOATS) :].T.float(), **columns)
