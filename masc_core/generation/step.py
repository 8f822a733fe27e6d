"""A step of a batch as tensors alone: nothing is read on the host, and no shape depends on a value.

So a GPU can record it once for some numbers of rows and images, and replay it for any images. What
is known of images lies in tables with a row a slot; indices say which images are in this step. Rows
and images that only fill up belong to the last slot of the tables, whose content means nothing.
`masc_core.generation.batch` does the same for images that are looked at on the host.
This module does not know about graphs, nor who is in the batch.

Legend: B images and R rows of a step, both with filling; S slots; K clusters; L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from masc_core.device import new_stream
from masc_core.generation.tables import Heated, ImageColumns, columns_of, heated
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import REFINE, InClusterDecoder
from masc_core.models.gpt import GPT, Block, Prediction
from masc_core.models.rows import Rows
from masc_core.models.slot_cache import SlotCache
from masc_core.philox import code_bits, gumbel
from masc_core.refinement import Refinement
from masc_core.sampling import draw, filter_logits, guide

Work = TypeVar("Work", bound=Callable[..., object])


class Tables(NamedTuple):
    """What is known of the images, S + 1 rows.

    Attributes
    ----------
    columns : parameters, position and token of each, (S + 1,)
    finite : bool (S + 1,), whether all logits so far were
    codes : int64 (S + 1, L)
    entropies : float32 (S + 1, L), bits
    """

    columns: ImageColumns
    finite: Tensor
    codes: Tensor
    entropies: Tensor

    @classmethod
    def empty(cls, num_slots: int, length: int, device: torch.device) -> Tables:
        """Tables for S slots; all rows are of images that could be drawn."""
        shape = (num_slots + 1, length)
        nobody = ImageSpec(class_id=0, cfg_scale=1.0, seed=0)
        return cls(
            columns_of([nobody] * shape[0], device),
            torch.ones(shape[0], dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
        )

    def put(self, slots: Tensor, columns: ImageColumns) -> None:
        """Let images start in the slots, int64 (n,)."""
        for table, column in zip(self.columns, columns, strict=True):
            table[slots] = column
        self.finite[slots] = True


class Indices(NamedTuple):
    """Who is in a step, all int64.

    Attributes
    ----------
    slots : (R,), where each row is in the cache
    owners : (R,), slot of the image that the row belongs to
    is_null : (R,), 1 where the row is of the null class, else 0
    images : (B,), slots of the images, whose rows are the first B
    partners : (B,), each one's row of the null class; its own row where it is not guided
    """

    slots: Tensor
    owners: Tensor
    is_null: Tensor
    images: Tensor
    partners: Tensor


class StepNoise(NamedTuple):
    """Random numbers of a step: float32 (B, K) for clusters, int64 (B,) for codes."""

    gumbel: Tensor
    bits: Tensor


class StaticStep:
    """Draws one position of the images of a step, and writes it into the tables.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    num_slots : S
    compiled : whether `torch.compile` makes kernels of the parts. All layers share one part, which
        is compiled for the first number of rows and then once more for all others.

    Attributes
    ----------
    tables : what it reads and writes
    """

    def __init__(
        self, model: GPT, decoder: InClusterDecoder, num_slots: int, *, compiled: bool
    ) -> None:
        weight, config = model.output.weight, model.config
        self.tables = Tables.empty(num_slots, config.block_size, weight.device)
        self._model, self._decoder = model, decoder
        self._cache = SlotCache(config, num_slots + 1, weight.dtype, weight.device)
        self._blocks = list(zip(model.blocks, self._cache.layers, strict=True))
        self._side = new_stream(weight.device) if weight.is_cuda else None
        self._enter = _compiled(enter, when=compiled)
        self._embed = _compiled(model.embed, when=compiled)
        self._run_block = _compiled(Block.step, when=compiled)
        self._head = _compiled(model.head, when=compiled)
        self._noise = _compiled(noise_of, when=compiled)
        self._heat = _compiled(guide_and_heat, when=compiled)
        self._finish = _compiled(draw_and_write, when=compiled)
        self._refine = _compiled(refine_and_write, when=compiled)
        self._refinement = (
            Refinement(decoder.refiner, decoder.prior, num_slots + 1, recordable=True)
            if "refine" in decoder.decodings
            else None
        )

    def __call__(self, indices: Indices, *, filters: bool, refine: bool = False) -> None:
        """Do the step.

        Parameters
        ----------
        indices : who is in it
        filters : whether any of the images asks for top-k or top-p
        refine : whether the refiner draws codes of any
        """
        tables = self.tables
        noise = self._noise_beside(indices)
        hidden, logits = self.predict(indices)
        heat = self._heat(tables, indices, logits)
        if filters:
            columns = tables.columns
            top_k, top_p = columns.top_k[indices.images], columns.top_p[indices.images]
            heat = heat._replace(logits=filter_logits(heat.logits, top_k, top_p))
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)
        self._finish(tables, indices, self._decoder, heat, noise)
        if refine and self._refinement is not None:
            self._refine(tables, indices, self._refinement, hidden, noise.bits)

    def predict(self, indices: Indices) -> Prediction:
        """What the model makes of the rows, whose keys and values are then in the cache."""
        ids, positions = self._enter(self.tables, indices, self._model.config.num_classes)
        rows = Rows(ids, positions, indices.slots)
        x, turns = self._embed(rows)
        more = torch.zeros_like(x)
        for block, layer in self._blocks:
            x, more = self._run_block(block, x, more, turns, rows, layer)
        return self._head(x, more)

    def _noise_beside(self, indices: Indices) -> StepNoise:
        """Random numbers; on a GPU they are made while the model runs."""
        num_clusters = self._model.config.vocab_size
        if self._side is None:
            return self._noise(self.tables, indices, num_clusters)
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            return self._noise(self.tables, indices, num_clusters)


def enter(tables: Tables, indices: Indices, null_class: int) -> tuple[Tensor, Tensor]:
    """What each row takes in, and its position; both int64 (R,)."""
    columns = tables.columns
    positions = columns.positions[indices.owners]
    classes = torch.where(indices.is_null == 1, null_class, columns.classes[indices.owners])
    return torch.where(positions == 0, classes, columns.tokens[indices.owners]), positions


def noise_of(tables: Tables, indices: Indices, num_clusters: int) -> StepNoise:
    """Random numbers for the images; see `masc_core.philox`."""
    seeds = tables.columns.seeds[indices.images]
    positions = tables.columns.positions[indices.images]
    return StepNoise(gumbel(seeds, positions, num_clusters), code_bits(seeds, positions))


def guide_and_heat(tables: Tables, indices: Indices, logits: Tensor) -> Heated:
    """Guide the rows' logits (R, K) and divide them by the temperatures.

    An image that is not guided is its own partner: its logits stay what they are.
    """
    scales = tables.columns.scales[indices.images]
    temperatures = tables.columns.temperatures[indices.images]
    guided = guide(logits[: len(scales)], logits[indices.partners], scales)
    return heated(guided, temperatures)


def draw_and_write(
    tables: Tables,
    indices: Indices,
    decoder: InClusterDecoder,
    heat: Heated,
    noise: StepNoise,
) -> None:
    """Draw clusters and codes, note them, and let the images go to their next positions."""
    images, columns = indices.images, tables.columns
    positions = columns.positions[images]
    clusters = draw(heat.logits, noise.gumbel)
    tables.codes[images, positions] = decoder.pick(clusters, noise.bits, columns.decodings[images])
    tables.entropies[images, positions] = heat.entropies
    tables.finite[images] = tables.finite[images] & heat.finite
    columns.tokens[images] = clusters
    # What fills up stays at the first position, where attention is shortest.
    nobody = len(tables.finite) - 1
    columns.positions[images] = torch.where(images < nobody, positions + 1, 0)


def refine_and_write(
    tables: Tables, indices: Indices, refinement: Refinement, hidden: Tensor, bits: Tensor
) -> None:
    """Let the refiner draw codes of all images, and note those that are asked for.

    Comes after `draw_and_write`, which has noted the clusters and gone on to the next positions.
    """
    images, columns = indices.images, tables.columns
    positions = (columns.positions[images] - 1).clamp(min=0)
    rows = Rows(images, positions, images)
    clusters, temperatures = columns.tokens[images], columns.temperatures[images]
    refined = refinement.draw(hidden[: len(images)], clusters, rows, bits, temperatures)
    is_asked = columns.decodings[images] == REFINE
    drawn = tables.codes[images, positions]
    tables.codes[images, positions] = torch.where(is_asked, refined, drawn)


def _compiled(work: Work, *, when: bool) -> Work:
    return cast("Work", torch.compile(work, fullgraph=True)) if when else work
