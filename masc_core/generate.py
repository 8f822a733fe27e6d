"""The plain generation loop: one batch, all images from the first position to the last.

What an image becomes depends on its `ImageSpec` alone. Rows of the batch do not meet in any
operation, and random words belong to (seed, position); so this loop is the oracle of every engine
that batches more cleverly. On CPU in float32 codes and entropies agree bit for bit.
This module does not know how codes become pixels, nor where requests come from.

Legend: B images, L positions of an image, R rows, K clusters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masc_core.errors import InvalidFieldError, NonFiniteError, UnknownClassError
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KVCache
from masc_core.sampling import draw, entropy_bits, filter_logits, guide, heat

# On CPU the matrix product of a row has the same bits for every number of rows that is a multiple
# of this, and others for 1, 2, 3, 5, ..., where other kernels take the rows that are left over.
CPU_ROW_MULTIPLE = 4

OnStep = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """All that an image depends on besides the model.

    Attributes
    ----------
    class_id : class of the model
    cfg_scale : strength of classifier-free guidance, at least 1; 1 is off and costs half as much
    seed : in [0, 2^63)
    temperature : at least 0; at 0 the most probable token is taken
    top_k : keep the k most probable tokens; 0 is off
    top_p : keep the most probable tokens that hold this much probability, in (0, 1]; 1 is off
    decoding : how a code is drawn from a cluster, ``uniform`` or ``frequency``

    Raises
    ------
    InvalidFieldError : a value outside its range; `generate` checks what depends on the model
    """

    class_id: int
    cfg_scale: float
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    decoding: str = "uniform"

    def __post_init__(self) -> None:
        """Refuse values that no model can serve."""
        _require("cfg_scale", "1 or more", self.cfg_scale, 1 <= self.cfg_scale < math.inf)
        _require("seed", "in [0, 2^63)", self.seed, 0 <= self.seed < 2**63)
        _require("temperature", "0 or more", self.temperature, 0 <= self.temperature < math.inf)
        _require("top_k", "0 or more", self.top_k, 0 <= self.top_k < 2**63)
        _require("top_p", "in (0, 1]", self.top_p, 0 < self.top_p <= 1)


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` made, on the model's device.

    Attributes
    ----------
    codes : int64 (B, L), of the tokenizer, raster order
    clusters : int64 (B, L), what the transformer predicted
    entropies : float32 (B, L), bits; of the guided distribution before temperature and filters
    prefill_seconds, decode_seconds : duration of the first position, and of all others
    code_seconds : part of both that turned clusters into codes; on a GPU the time to enqueue it
    """

    codes: Tensor
    clusters: Tensor
    entropies: Tensor
    prefill_seconds: float
    decode_seconds: float
    code_seconds: float


@torch.inference_mode()
def generate(
    model: GPT,
    decoder: InClusterDecoder,
    specs: Sequence[ImageSpec],
    on_step: OnStep | None = None,
) -> Generated:
    """Generate a batch of images.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    specs : the B images, at least one
    on_step : called after each position p as ``on_step(p, codes)``, with the codes so far, int64
        (B, p + 1); what it raises ends the generation

    Raises
    ------
    UnknownClassError, InvalidFieldError : a spec asks for what the model does not have
    NonFiniteError : the logits of some images hold a NaN or an infinity; ``indices`` says of which
    ValueError : no images, or a model in training mode, where dropout makes results random
    """
    if model.training:
        raise ValueError("the model is in training mode")
    batch = _Batch(model, decoder, specs)
    num_steps = model.config.block_size
    clusters = batch.seeds.new_empty(len(specs), num_steps)
    codes = torch.empty_like(clusters)
    entropies = torch.empty(clusters.shape, dtype=torch.float32, device=clusters.device)
    started = prefilled = time.perf_counter()
    code_seconds = 0.0
    ids = batch.class_rows()
    for position in range(num_steps):
        logits = batch.logits(ids, position)
        entropies[:, position] = entropy_bits(logits)
        tokens = batch.sample(logits, position)
        clusters[:, position] = tokens
        predicted = time.perf_counter()
        codes[:, position] = batch.decode(tokens, position)
        code_seconds += time.perf_counter() - predicted
        ids = batch.token_rows(tokens)
        if position == 0:
            prefilled = _now(clusters.device)
        if on_step is not None:
            on_step(position, codes[:, : position + 1])
    finished = _now(clusters.device)
    return Generated(
        codes, clusters, entropies, prefilled - started, finished - prefilled, code_seconds
    )


class _Batch:
    """Parameters and rows of the images.

    Rows are the B conditional ones, then a null-class row for each guided image, then padding.
    """

    def __init__(self, model: GPT, decoder: InClusterDecoder, specs: Sequence[ImageSpec]) -> None:
        check(specs, model.config)
        weight = model.output.weight
        device = weight.device
        self.model, self.decoder = model, decoder
        self.seeds = torch.tensor([spec.seed for spec in specs], device=device)
        self.classes = torch.tensor([spec.class_id for spec in specs], device=device)
        self.guided = torch.tensor(
            [i for i, spec in enumerate(specs) if spec.cfg_scale != 1],
            dtype=torch.int64,
            device=device,
        )
        scales = [spec.cfg_scale for spec in specs if spec.cfg_scale != 1]
        self.scales = torch.tensor(scales, device=device)
        self.temperatures = torch.tensor([spec.temperature for spec in specs], device=device)
        top_k, top_p = [spec.top_k for spec in specs], [spec.top_p for spec in specs]
        self.top_k = torch.tensor(top_k, device=device) if any(top_k) else None
        self.top_p = (
            torch.tensor(top_p, dtype=torch.float64, device=device) if min(top_p) < 1 else None
        )
        self.decodings = decoder.modes([spec.decoding for spec in specs])
        num_rows = len(specs) + len(scales)
        multiple = CPU_ROW_MULTIPLE if device.type == "cpu" else 1
        self.padding = -num_rows % multiple
        self.cache = KVCache(model.config, num_rows + self.padding, weight.dtype, device)

    def class_rows(self) -> Tensor:
        """Class of every row, int64 (R,)."""
        nulls = torch.full_like(self.guided, self.model.config.num_classes)
        return self._padded(torch.cat([self.classes, nulls]))

    def token_rows(self, clusters: Tensor) -> Tensor:
        """Token of every row, int64 (R,), of the images' clusters (B,)."""
        return self._padded(torch.cat([clusters, clusters[self.guided]]))

    def logits(self, ids: Tensor, position: int) -> Tensor:
        """Guided logits (B, K) of one position, given what the rows hold before it."""
        rows = self.model.step(ids, position, self.cache)  # (R, K)
        num_images, num_guided = len(self.seeds), len(self.guided)
        logits = rows[:num_images]
        if num_guided:
            uncond = rows[num_images : num_images + num_guided]
            logits[self.guided] = guide(logits[self.guided], uncond, self.scales)
        at_fault = (~logits.isfinite().all(1)).nonzero().flatten().tolist()  # waits for the device
        if at_fault:
            images = ", ".join(map(str, at_fault))
            raise NonFiniteError(
                f"NaN or infinity in the logits of image {images} at position {position}", at_fault
            )
        return logits

    def sample(self, logits: Tensor, position: int) -> Tensor:
        """Clusters (B,) of logits (B, K)."""
        heated = heat(logits, self.temperatures)
        return draw(filter_logits(heated, self.top_k, self.top_p), self.seeds, position)

    def decode(self, clusters: Tensor, position: int) -> Tensor:
        """Codes (B,) of clusters (B,)."""
        return self.decoder.decode(clusters, self.seeds, position, self.decodings)

    def _padded(self, ids: Tensor) -> Tensor:
        return torch.cat([ids, ids.new_zeros(self.padding)])


def check(specs: Sequence[ImageSpec], config: GPTConfig) -> None:
    """Raise, as `generate` does, if a model of this configuration cannot make the images."""
    if not specs:
        raise ValueError("no images to generate")
    for spec in specs:
        if not 0 <= spec.class_id < config.num_classes:
            raise UnknownClassError(
                "class_id", f"class_id must be in 0..{config.num_classes - 1}, got {spec.class_id}"
            )
        if spec.cfg_scale != 1 and config.num_class_rows == config.num_classes:
            raise InvalidFieldError(
                "cfg_scale", "cfg_scale must be 1: the model was trained without a null class"
            )


def _require(field: str, expected: str, value: float, holds: bool) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidFieldError(field, f"{field} must be {expected}, got {value}")


def _now(device: torch.device) -> float:
    """Time when all work queued so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
