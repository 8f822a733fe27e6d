"""Images on their way through the transformer together, each at a position of its own.

What an image becomes depends on its `ImageSpec` alone. Rows of the batch do not meet in any
operation, and random words belong to (seed, position); on the CPU every row has the same bits in
any company. An image takes one row of the transformer's batch, a guided one a second row for the
null class. Everything is vectorised over the images; only when one joins or leaves are they looked
at one by one.
This module does not know when an image is done, nor who wants it.

Legend: B images, R rows, S slots, K clusters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from masc_core.image_spec import ImageSpec, check_specs
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from masc_core.models.kv_cache import KVCache
from masc_core.models.rows import Group, Rows, grouped
from masc_core.noise import Noise
from masc_core.sampling import draw, entropy_bits, filter_logits, guide, heat

# On the CPU a float32 matrix product of a row has the same bits for every number of rows that is a
# multiple of this, and others for 1, 2, 3, 5, ..., where other kernels take the rows left over.
CPU_ROW_MULTIPLE = 4
# In bfloat16 it has others for one row, and where rows times weights are no more than this.
CPU_SMALL_PRODUCT = 4096
NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step has drawn, in the order of the images.

    Attributes
    ----------
    positions : int64 (B,), that were drawn
    clusters, codes : int64 (B,)
    entropies : float32 (B,), bits; of the guided distribution before temperature and filters
    finite : bool (B,), whether the logits were; where not, the rest means nothing
    code_seconds : time to turn clusters into codes; on a GPU the time to enqueue that
    """

    positions: Tensor
    clusters: Tensor
    codes: Tensor
    entropies: Tensor
    finite: Tensor
    code_seconds: float


class _Images(NamedTuple):
    """A column a parameter, each (B,)."""

    seeds: Tensor
    classes: Tensor
    scales: Tensor
    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    decodings: Tensor
    positions: Tensor  # to be drawn next
    tokens: Tensor  # drawn last


class ImageBatch:
    """The images, none at first.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    num_slots : S, images and guided ones that may be here at once: a guided image counts twice
    """

    def __init__(self, model: GPT, decoder: InClusterDecoder, num_slots: int) -> None:
        weight = model.output.weight
        self._model, self._decoder, self._device = model, decoder, weight.device
        self._multiple, self._least = _row_counts(model)
        self._num_slots = num_slots
        padded = num_slots + max(self._multiple, self._least) - 1
        self._cache = KVCache(model.config, padded, weight.dtype, weight.device)
        self._noise = Noise(model.config.vocab_size)
        self._images = self._columns(())
        self._specs: list[ImageSpec] = []
        self._slots: list[tuple[int, int]] = []
        self._ages: list[int] = []  # step at which each joined
        self._age = 0
        self._arrange()

    def __len__(self) -> int:
        """B."""
        return len(self._specs)

    @property
    def num_rows(self) -> int:
        """Rows that the images take, without padding."""
        return len(self) + len(self._guided)

    def join(self, specs: Sequence[ImageSpec], slots: Sequence[tuple[int, int]]) -> None:
        """Add images at their first position, behind those that are here.

        Parameters
        ----------
        specs : at least one
        slots : for each a free slot of its own, and one for its null class, or `NO_SLOT`

        Raises
        ------
        UnknownClassError, InvalidFieldError : a spec asks for what the model does not have
        """
        check_specs(specs, self._model.config)
        joining = self._columns(specs)
        self._images = _Images(*map(torch.cat, zip(self._images, joining, strict=True)))
        self._specs += specs
        self._slots += slots
        self._ages += [self._age] * len(specs)
        self._arrange()

    def keep(self, images: Sequence[int]) -> None:
        """Let all images go but these, which stay in the given order."""
        chosen = torch.tensor(images, dtype=torch.int64, device=self._device)
        self._images = _Images(*(column[chosen] for column in self._images))
        self._specs = [self._specs[i] for i in images]
        self._slots = [self._slots[i] for i in images]
        self._ages = [self._ages[i] for i in images]
        self._arrange()

    def step(self) -> Drawn:
        """Draw the next position of every image; there is at least one, and none is complete."""
        images = self._images
        logits = self._guide(self._model.step(self._rows(), self._cache))
        finite = logits.isfinite().all(1)
        entropies = entropy_bits(logits)
        filtered = filter_logits(heat(logits, images.temperatures), self._top_k, self._top_p)
        noise, bits = self._noise.of(images.seeds, images.positions)
        clusters = draw(filtered, noise)
        predicted = time.perf_counter()
        codes = self._decoder.pick(clusters, bits, images.decodings)
        seconds = time.perf_counter() - predicted
        self._images = images._replace(tokens=clusters, positions=images.positions + 1)
        self._noise.advance()
        self._age += 1
        return Drawn(images.positions, clusters, codes, entropies, finite, seconds)

    def _columns(self, specs: Sequence[ImageSpec]) -> _Images:
        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        zeros = [0] * len(specs)
        return _Images(
            seeds=column([spec.seed for spec in specs], torch.int64),
            classes=column([spec.class_id for spec in specs], torch.int64),
            scales=column([spec.cfg_scale for spec in specs], torch.float32),
            temperatures=column([spec.temperature for spec in specs], torch.float32),
            top_k=column([spec.top_k for spec in specs], torch.int64),
            top_p=column([spec.top_p for spec in specs], torch.float64),
            decodings=self._decoder.modes([spec.decoding for spec in specs]),
            positions=column(zeros, torch.int64),
            tokens=column(zeros, torch.int64),
        )

    def _arrange(self) -> None:
        """Rows are those of all images, then one for each null class, then padding."""
        self._noise.forget()
        guided = [i for i, (_, null) in enumerate(self._slots) if null != NO_SLOT]
        slots = [slot for slot, _ in self._slots] + [self._slots[i][1] for i in guided]
        ages = self._ages + [self._ages[i] for i in guided]
        padding = max(-len(slots) % self._multiple, self._least - len(slots))
        spare = Group(len(slots), len(slots) + padding, self._num_slots, 0)
        self._groups = grouped(slots, ages)  # with ages instead of positions
        self._spare = [spare] if padding else []
        self._guided = torch.tensor(guided, dtype=torch.int64, device=self._device)
        self._padding = self._guided.new_zeros(padding)
        self._guided_scales = self._images.scales[self._guided]
        self._top_k = self._images.top_k if any(spec.top_k for spec in self._specs) else None
        self._top_p = self._images.top_p if any(spec.top_p < 1 for spec in self._specs) else None

    def _rows(self) -> Rows:
        images, guided = self._images, self._guided
        first = images.positions == 0
        ids = torch.where(first, images.classes, images.tokens)
        null_ids = torch.where(first, self._model.config.num_classes, images.tokens)[guided]
        groups = [group._replace(position=self._age - group.position) for group in self._groups]
        return Rows(
            torch.cat([ids, null_ids, self._padding]),
            torch.cat([images.positions, images.positions[guided], self._padding]),
            groups + self._spare,
        )

    def _guide(self, rows: Tensor) -> Tensor:
        """Guided logits (B, K) of the rows' (R, K)."""
        num_images, num_guided = len(self), len(self._guided)
        logits = rows[:num_images]
        if num_guided:
            null = rows[num_images : num_images + num_guided]
            logits[self._guided] = guide(logits[self._guided], null, self._guided_scales)
        return logits


def _row_counts(model: GPT) -> tuple[int, int]:
    """What the number of rows must be a multiple of, and at least, for a row to keep its bits."""
    weight = model.output.weight
    if weight.device.type != "cpu":
        return 1, 1
    if weight.dtype == torch.float32:
        return CPU_ROW_MULTIPLE, 1
    smallest = min(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    return 1, max(2, CPU_SMALL_PRODUCT // smallest + 1)


def one_after_another(specs: Sequence[ImageSpec]) -> list[tuple[int, int]]:
    """Slots for images that have all slots for themselves: in order, null classes last."""
    null = len(specs)
    slots: list[tuple[int, int]] = []
    for i, spec in enumerate(specs):
        slots.append((i, NO_SLOT if spec.num_rows == 1 else null))
        null += spec.num_rows - 1
    return slots
