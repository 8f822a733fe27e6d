"""The plain generation loop: one batch, all images from the first position to the last.

It is the oracle of every engine that batches more cleverly: on the CPU codes and entropies agree
bit for bit.

Legend: B images, L positions of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masc_core.errors import NonFiniteError
from masc_core.generation.batch import Batch
from masc_core.models.gpt import GPT
from masc_core.sampling.completion import complete_codes
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` made, on the model's device."""

    codes: Tensor  # int64 (B, L), of the tokenizer, raster order; completed where that is asked for
    clusters: Tensor  # int64 (B, L), what the transformer predicted
    entropies: Tensor  # float32 (B, L), bits; with guidance, before temperature and filters
    cluster_entropies: Tensor  # the same of the partition's clusters; (B, 0) without one
    prefill_seconds: float  # of the first position
    decode_seconds: float  # of all others
    code_seconds: float  # of both, to turn clusters into codes; on a GPU to enqueue that
    complete_seconds: float  # to draw all codes anew from all clusters, where that is asked for


@torch.inference_mode()
def generate(
    model: GPT,
    code_sampler: CodeSampler,
    params_list: Sequence[SamplingParams],
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Generated:
    """Generate a batch of images.

    Parameters
    ----------
    model : in evaluation mode
    code_sampler : on the model's device
    params_list : of the B images, at least one
    on_step : called after each position p as ``on_step(p, codes)``, with the codes so far, int64
        (B, p + 1), which of images that are completed are not the final ones; what it raises ends
        the generation

    Raises
    ------
    UnknownClassError, InvalidFieldError : as from `Batch.join`
    NonFiniteError : logits of some images hold a NaN or an infinity; ``indices`` says of which
    ValueError : no images, or a model in training mode, where dropout makes results random
    """
    if model.training:
        raise ValueError("the model is in training mode")
    batch = Batch(model, code_sampler, sum(params.batch_rows for params in params_list))
    slots = batch.join(params_list)
    num_steps, device = model.config.block_size, model.output.weight.device
    images, tables = torch.tensor(slots, device=device), batch.tables
    clusters = torch.empty(len(params_list), num_steps, dtype=torch.int64, device=device)
    started = prefilled = time.perf_counter()
    code_seconds = 0.0
    for position in range(num_steps):
        report = batch.step()
        _require_finite(report.failed, slots, position)
        clusters[:, position] = tables.token[images]
        code_seconds += report.code_seconds
        if position == 0:
            prefilled = _now(device)
        if on_step is not None:
            on_step(position, tables.codes[images, : position + 1])
    finished = _now(device)
    codes = complete_codes(code_sampler, tables.codes[images], params_list)
    return Generated(
        codes=codes,
        clusters=clusters,
        entropies=tables.entropies[images],
        cluster_entropies=tables.cluster_entropies[images],
        prefill_seconds=prefilled - started,
        decode_seconds=finished - prefilled,
        code_seconds=code_seconds,
        complete_seconds=_now(device) - finished,
    )


def _require_finite(failed: Sequence[int], slots: Sequence[int], position: int) -> None:
    if failed:
        at_fault = sorted(slots.index(slot) for slot in failed)
        images = ", ".join(map(str, at_fault))
        raise NonFiniteError(
            f"NaN or infinity in the logits of image {images} at position {position}", at_fault
        )


def _now(device: torch.device) -> float:
    """Time when all work queued so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
