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
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masc_core.generation.slots import Member, num_rows, seat
from masc_core.generation.tables import columns_of, heated
from masc_core.image_spec import ImageSpec, check_specs
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from masc_core.models.kv_cache import KVCache
from masc_core.models.rows import Group, Rows, grouped
from masc_core.noise import Noise
from masc_core.refinement import Refinement
from masc_core.sampling import draw, filter_logits, guide

# On the CPU a matrix product of a row has the same bits for every number of rows that is a multiple
# of this, but not for every other one. Nor would fewer be faster: oneDNN is slower with two.
CPU_ROW_MULTIPLE = 4


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step has drawn, in the order of the images.

    Attributes
    ----------
    slots : int64 (B,), what the images are known by
    positions : int64 (B,), that were drawn
    clusters, codes : int64 (B,)
    entropies : float32 (B,), bits; of the guided distribution before temperature and filters
    finite : bool (B,), whether the logits were; where not, the rest means nothing
    code_seconds : time to turn clusters into codes; on a GPU the time to enqueue that
    """

    slots: Tensor
    positions: Tensor
    clusters: Tensor
    codes: Tensor
    entropies: Tensor
    finite: Tensor
    code_seconds: float


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """How the images lie in the transformer's batch: they, one row a null class, then padding."""

    slots: Tensor  # int64 (R,)
    guided: Tensor  # int64, images that have a null class
    scales: Tensor  # float32, theirs
    padding: Tensor  # int64, zeros
    groups: list[Group]  # without padding, with steps of joining instead of positions
    top_k: Tensor | None
    top_p: Tensor | None
    refined: _Refined | None


@dataclass(frozen=True, slots=True)
class _Refined:
    """Images whose codes the refiner draws."""

    images: Tensor  # int64 (n,), which of the batch
    rows: Tensor  # int64 (m,), they, then padding
    slots: Tensor  # int64 (m,)
    groups: list[Group]  # without padding, with steps of joining instead of positions


class ImageBatch:
    """The images, none at first.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    num_slots : S, images and guided ones that may be here at once: a guided image counts twice
    """

    def __init__(self, model: GPT, decoder: InClusterDecoder, num_slots: int) -> None:
        model.pack()
        weight = model.output.weight
        self._model, self._decoder, self._device = model, decoder, weight.device
        self._row_multiple = CPU_ROW_MULTIPLE if weight.device.type == "cpu" else 1
        self._num_slots = num_slots
        self._cache = KVCache(model.config, num_slots, weight.dtype, weight.device)
        self._noise = Noise(model.config.vocab_size)
        self._refinement: Refinement | None = None  # once it is needed
        self._images = columns_of((), self._device)
        self._members: list[Member] = []
        self._arrangement: _Arrangement | None = None  # of these members, once it is needed
        self._age = 0

    def __len__(self) -> int:
        """B."""
        return len(self._members)

    @property
    def num_rows(self) -> int:
        """Rows that the images take, without padding."""
        return num_rows(self._members)

    def join(self, specs: Sequence[ImageSpec]) -> list[int]:
        """Add images at their first position, behind those that are here: all of them or none.

        Parameters
        ----------
        specs : at least one

        Returns
        -------
        the slots by which the images are known until they leave

        Raises
        ------
        UnknownClassError, InvalidFieldError : a spec asks for what the model does not have
        ValueError : the images do not fit
        """
        check_specs(specs, self._model.config)
        for spec in specs:
            self._decoder.check(spec.decoding)
        joining = seat(specs, self._members, self._num_slots, self._age)
        images = self._images.followed_by(columns_of(specs, self._device))
        self._images, self._members, self._arrangement = images, self._members + joining, None
        return [member.slot for member in joining]

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""
        kept = [i for i, member in enumerate(self._members) if member.slot not in slots]
        images = self._images.of(self._tensor(kept))
        members = [self._members[i] for i in kept]
        self._images, self._members, self._arrangement = images, members, None

    def step(self) -> Drawn:
        """Draw the next position of every image; there is at least one, and none is complete."""
        if self._arrangement is None:
            self._arrangement = self._arrange()
            self._noise.forget()
        images, lying = self._images, self._arrangement
        prediction = self._model.step(self._rows(lying), self._cache)
        logits = self._guide(prediction.logits, lying)
        hot, entropies, finite = heated(logits, images.temperatures)
        filtered = filter_logits(hot, lying.top_k, lying.top_p)
        noise, bits = self._noise.of(images.seeds, images.positions)
        clusters = draw(filtered, noise)
        predicted = time.perf_counter()
        codes = self._decoder.pick(clusters, bits, images.decodings)
        if lying.refined is not None:
            drawn = self._refine(lying.refined, prediction.hidden, clusters, bits)
            codes[lying.refined.images] = drawn
        seconds = time.perf_counter() - predicted
        self._images = images._replace(tokens=clusters, positions=images.positions + 1)
        self._noise.advance()
        self._age += 1
        slots = lying.slots[: len(self)]
        return Drawn(slots, images.positions, clusters, codes, entropies, finite, seconds)

    def _arrange(self) -> _Arrangement:
        members, images = self._members, self._images
        guided = [i for i, member in enumerate(members) if member.is_guided]
        slots = [member.slot for member in members] + [members[i].null for i in guided]
        joined = [member.joined for member in members] + [members[i].joined for i in guided]
        with_null = self._tensor(guided)
        padding = [0] * (-len(slots) % self._row_multiple)
        return _Arrangement(
            slots=self._tensor(slots + padding),
            guided=with_null,
            scales=images.scales[with_null],
            padding=self._tensor(padding),
            groups=grouped(slots, joined),
            top_k=images.top_k if any(member.spec.top_k for member in members) else None,
            top_p=images.top_p if any(member.spec.top_p < 1 for member in members) else None,
            refined=self._arrange_refined(),
        )

    def _arrange_refined(self) -> _Refined | None:
        wanting = [i for i, m in enumerate(self._members) if m.spec.decoding == "refine"]
        if not wanting:
            return None
        members = [self._members[i] for i in wanting]
        slots = [member.slot for member in members]
        padding = [0] * (-len(wanting) % self._row_multiple)
        return _Refined(
            images=self._tensor(wanting),
            rows=self._tensor(wanting + padding),
            slots=self._tensor(slots + padding),
            groups=grouped(slots, [member.joined for member in members]),
        )

    def _rows(self, lying: _Arrangement) -> Rows:
        images, guided = self._images, lying.guided
        first = images.positions == 0
        ids = torch.where(first, images.classes, images.tokens)
        null_ids = torch.where(first, self._model.config.num_classes, images.tokens)[guided]
        return Rows(
            torch.cat([ids, null_ids, lying.padding]),
            torch.cat([images.positions, images.positions[guided], lying.padding]),
            lying.slots,
            self._at_positions(lying.groups),
        )

    def _at_positions(self, groups: Sequence[Group]) -> list[Group]:
        return [group._replace(position=self._age - group.position) for group in groups]

    def _guide(self, rows: Tensor, lying: _Arrangement) -> Tensor:
        """Guided logits (B, K) of the rows' (R, K)."""
        num_images, num_guided = len(self), len(lying.guided)
        logits = rows[:num_images]
        if num_guided:
            null = rows[num_images : num_images + num_guided]
            logits[lying.guided] = guide(logits[lying.guided], null, lying.scales)
        return logits

    def _refine(self, refined: _Refined, hidden: Tensor, clusters: Tensor, bits: Tensor) -> Tensor:
        """Codes int64 (n,) of the refined images; their conditional rows come first in (R, C)."""
        if self._refinement is None:
            self._refinement = Refinement(
                self._decoder.refiner, self._decoder.prior, self._num_slots, recordable=False
            )
        positions, temperatures = self._images.positions, self._images.temperatures
        groups = self._at_positions(refined.groups)
        rows = Rows(refined.slots, positions[refined.rows], refined.slots, groups)
        return self._refinement.draw(
            hidden[refined.rows],
            clusters[refined.rows],
            rows,
            bits[refined.images],
            temperatures[refined.images],
        )

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
