"""The plain generation loop: one batch, all images from the first position to the last.

It is the oracle of every engine that batches more cleverly: on the CPU codes and entropies agree
bit for bit.

Legend: B images, L positions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@torch.inference_mode()
def generate(
    model: GPT, code_sampler: CodeSampler, params_list: Sequence[SamplingParams]
) -> Generated:
    """Generate a batch of images.

    Parameters
    ----------
    model : in evaluation mode
    code_sampler : on the model's device
    params_list : of the B images, at least one

    Raises
    ------
    UnknownClassError, InvalidFieldError : as from `Batch.join`
    NonFiniteError : logits of some images hold a NaN or an infinity; the message names them
    ValueError : no images, or a model in training mode, where dropout makes results random
    """
    if model.training:
        raise ValueError("the model is in training mode")
    batch = Batch(model, code_sampler, sum(params.batch_rows for params in params_list))
    slots = batch.join(params_list)
    num_steps, device = model.config.block_size, model.output.weight.device
    images, tables = torch.tensor(slots, device=device), batch.tables
    clusters = torch.empty(len(params_list), num_steps, dtype=torch.int64, device=device)
    for position in range(num_steps):
        _require_finite(batch.step().failed, slots, position)
        clusters[:, position] = tables.token[images]
    return Generated(
        codes=complete_codes(code_sampler, tables.codes[images], params_list),
        clusters=clusters,
        entropies=tables.entropies[images],
        cluster_entropies=tables.cluster_entropies[images],
    )


def _require_finite(failed: Sequence[int], slots: Sequence[int], position: int) -> None:
    if failed:
        images = ", ".join(map(str, sorted(slots.index(slot) for slot in failed)))
        raise NonFiniteError(
            f"NaN or infinity in the logits of image {images} at position {position}"
        )
