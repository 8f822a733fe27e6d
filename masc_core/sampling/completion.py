"""Codes of whole images from their clusters, by the completer: the decoding ``complete``.

Every position is drawn independently, given all clusters of the image: guidance, temperature, the
top k of the position's cluster, draw. It takes the random word of (seed, position) that the other
decodings would take, so clusters do not depend on the decoding.

An image does not depend on those beside it: rows go through the model in passes of a fixed number,
filled up where there are fewer, on a CPU one by one.

Legend: B images, R rows, L positions, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.errors import NonFiniteError
from masc_core.models.completer import Completer
from masc_core.sampling.in_cluster import CodeSampler, sample_index
from masc_core.sampling.params import SamplingParams
from masc_core.sampling.rng import code_bits
from masc_core.sampling.sampler import apply_cfg, apply_temperature, filter_logits

GPU_ROWS = 8  # of a pass: with 257 positions each it has work for a whole GPU


@torch.inference_mode()
def complete_codes(
    code_sampler: CodeSampler, codes: Tensor, params_list: Sequence[SamplingParams]
) -> Tensor:
    """Final codes int64 (B, L): a completer's where they are asked for, others as they are.

    Parameters
    ----------
    code_sampler : has a completer, if any image asks for it
    codes : int64 (B, L), any of the clusters that were drawn, on the sampler's device
    params_list : of the B images

    Raises
    ------
    NonFiniteError : the scores of some images hold a NaN or an infinity; the message names them
    """
    chosen = [i for i, params in enumerate(params_list) if params.decoding == "complete"]
    if not chosen:
        return codes
    completer, device = code_sampler.completer, codes.device
    wanted = [params_list[i] for i in chosen]
    guided = [i for i, params in enumerate(wanted) if params.code_cfg_scale != 1]
    clusters = code_sampler.labels[codes[chosen]]
    classes = [params.class_id for params in wanted]
    classes += [completer.config.num_classes] * len(guided)
    vectors = _vectors(
        completer, torch.tensor(classes, device=device), torch.cat([clusters, clusters[guided]])
    )
    uncond_of = dict(zip(guided, vectors[len(wanted) :], strict=True))
    completed, at_fault = codes.clone(), []
    for i, params in enumerate(wanted):
        logits = completer.output(vectors[i]).float()  # (L, V)
        if i in uncond_of:
            uncond = completer.output(uncond_of[i]).float()
            logits = apply_cfg(logits, uncond, _column(params.code_cfg_scale, logits))
        if not logits.isfinite().all():
            at_fault.append(chosen[i])
            continue
        completed[chosen[i]] = _draw(code_sampler, logits, clusters[i], params)
    if at_fault:
        whose = f" of image {', '.join(map(str, at_fault))}" if len(params_list) > 1 else ""
        raise NonFiniteError(f"NaN or infinity in the completer's scores{whose}")
    return completed


def _vectors(completer: Completer, classes: Tensor, clusters: Tensor) -> Tensor:
    """`Completer.hidden` of rows, classes int64 (R,) and clusters int64 (R, L), pass by pass."""
    at_once = GPU_ROWS if clusters.is_cuda else 1
    padding = -len(classes) % at_once
    passes = zip(
        torch.split(F.pad(classes, (0, padding)), at_once),
        torch.split(F.pad(clusters, (0, 0, 0, padding)), at_once),
        strict=True,
    )
    return torch.cat([completer.hidden(*rows) for rows in passes])[: len(classes)]


def _draw(
    code_sampler: CodeSampler, logits: Tensor, clusters: Tensor, params: SamplingParams
) -> Tensor:
    """A code for each position of one image, int64 (L,), from logits (L, V)."""
    temperature = _column(params.code_temperature, logits)
    scores = apply_temperature(logits, temperature)
    if code_sampler.completer.config.softmax == "member":
        scores = scores.masked_fill(code_sampler.labels != clusters[:, None], -torch.inf)
    if params.code_top_k:
        top_k = torch.full_like(clusters, min(params.code_top_k, scores.shape[1]))
        scores = filter_logits(scores, top_k, None)
    positions = torch.arange(len(scores), device=scores.device)
    seeds = torch.full_like(positions, params.seed)
    return sample_index(scores, code_bits(seeds, positions), temperature)


def _column(value: float, logits: Tensor) -> Tensor:
    """The same number for every row, float32 (L,)."""
    return torch.full((len(logits),), value, dtype=torch.float32, device=logits.device)
