"""Cross-entropy and entropy of a model on real images, position by position.

Every position is predicted with the true clusters before it, in evaluation mode, at temperature 1,
without filters. At ``cfg_scale`` 1 that is the model itself; above, the guided distribution that
sampling draws from. The mean entropy over positions and images is one reading of the paper's Eq. 6;
the other one, over images that the model draws, is measured while they are drawn.

Legend: B images, L positions, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.read import Bundle
from masc_core.errors import ConfigError
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.sampler import apply_cfg
from training.changes import require_same_classes
from training.data.code_cache import CodeCache
from training.losses.transformer import position_cross_entropy_and_entropy
from training.metrics.cluster_levels import NUM_SUMS, ClusterLevelMetrics
from training.metrics.partial_results import PartialResults

Curve = NDArray[np.float64]
BATCHES_AT_ONCE = 10  # until what is there is saved
LOGITS_AT_ONCE = 2**26  # 256 MB of them, and about four times as much on the way to the entropies


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """Means over images.

    Attributes
    ----------
    entropy, cross_entropy : float64 (L,), bits
    member_bits : bits to tell a code from the others of its cluster when all are alike: the mean
        of ``log2 |cluster|`` over the true codes
    num_images : how many
    levels : figures of the clusters of the bundle's partitions, by name
    """

    entropy: Curve
    cross_entropy: Curve
    member_bits: float
    num_images: int
    levels: dict[str, float] = field(default_factory=dict)

    def metrics(self, num_clusters: int) -> dict[str, float]:
        """Means over positions; ``fine_cross_entropy_bits``: of a code that is drawn uniformly."""
        entropy, cross = float(self.entropy.mean()), float(self.cross_entropy.mean())
        return {
            "teacher_forced_entropy_bits": entropy,
            "teacher_forced_entropy_ratio": entropy / math.log2(max(2, num_clusters)),
            "teacher_forced_cross_entropy_bits": cross,
            "member_bits": self.member_bits,
            "fine_entropy_bits": entropy + self.member_bits,
            "fine_cross_entropy_bits": cross + self.member_bits,
            "teacher_forced_images": self.num_images,
            **self.levels,
        }


@torch.inference_mode()
def teacher_forced(
    bundle: Bundle,
    cache: CodeCache,
    cfg_scale: float = 1.0,
    report: ProgressCallback = no_progress,
    unfinished: PartialResults | None = None,
) -> TeacherForced:
    """Measure a bundle on the codes of real images that fit it, their first variant."""
    unfinished = unfinished or PartialResults()
    prior, length = bundle.code_sampler.prior, bundle.manifest.num_positions
    batch_size = min(256, max(1, LOGITS_AT_ONCE // (length * prior.num_clusters)))
    partitions = [partition.over(prior) for partition in bundle.partitions]
    levels = [ClusterLevelMetrics(partition, bundle.device) for partition in partitions]
    begun = unfinished.load("teacher-forced") or {}
    sums = begun.get("sums", torch.zeros(2, length, dtype=torch.float64))
    no_sums = torch.zeros(len(levels), NUM_SUMS, dtype=torch.float64)
    level_sums = begun.get("level_sums", no_sums)
    members, seen = float(begun.get("members", 0.0)), int(begun.get("seen", 0))
    for number, start in enumerate(range(seen, len(cache), batch_size), 1):
        images = np.arange(start, min(start + batch_size, len(cache)))
        codes = cache.take(images, np.zeros_like(images))
        clusters = prior.encode(codes)
        members += float(np.log2(prior.sizes[clusters]).sum())
        logits = _logits(bundle, torch.from_numpy(cache.labels[images]),
                         torch.from_numpy(clusters), cfg_scale)  # fmt: skip
        true = torch.from_numpy(clusters).to(bundle.device)
        bits = position_cross_entropy_and_entropy(logits, true)
        for index, level in enumerate(levels):
            level_sums[index] += level.sums(logits, true).cpu()
        sums += torch.stack([bits.entropy, bits.cross_entropy]).sum(dim=1).double().cpu()
        seen = start + len(images)
        if seen == len(cache) or number % BATCHES_AT_ONCE == 0:
            numbers = {
                "members": torch.tensor(members, dtype=torch.float64),
                "seen": torch.tensor(seen),
            }
            saved = {"sums": sums, "level_sums": level_sums, **numbers}
            unfinished.save("teacher-forced", saved)
        report(seen, len(cache), "real images")
    entropy, cross = (sums / len(cache)).numpy()
    figures: dict[str, float] = {}
    for level, of_level in zip(levels, level_sums / len(cache) / length, strict=True):
        figures |= level.metrics(of_level)
    return TeacherForced(entropy, cross, members / len(cache) / length, len(cache), figures)


def _logits(bundle: Bundle, labels: Tensor, clusters: Tensor, cfg_scale: float) -> Tensor:
    """Guided logits float32 (B, L, K)."""
    labels, inputs = labels.to(bundle.device), clusters[:, :-1].to(bundle.device)
    logits: Tensor = bundle.transformer(labels, inputs)
    if cfg_scale == 1:
        return logits
    null: Tensor = bundle.transformer(
        torch.full_like(labels, bundle.transformer.config.num_classes), inputs
    )
    cfg_scales = torch.full((logits.shape[0] * logits.shape[1],), cfg_scale, device=bundle.device)
    return apply_cfg(logits.flatten(0, 1), null.flatten(0, 1), cfg_scales).view_as(logits)


def check_codes(bundle: Bundle, cache: CodeCache) -> None:
    """Raise a ConfigError where a cache is of another tokenizer, other sizes or other classes."""
    manifest, index = bundle.manifest, cache.index
    check_tokenizer(manifest, index.tokenizer_sha256, "codes")
    pairs = {
        "codes": (index.num_codes, manifest.num_codes),
        "positions": (index.num_positions, manifest.num_positions),
    }
    for name, (of_cache, of_model) in pairs.items():
        if of_cache != of_model:
            raise ConfigError(f"codes: have {of_cache} {name}, the model {of_model}")
    require_same_classes("codes", "the cache", index.class_names, "the model", manifest.class_names)


def check_tokenizer(manifest: Manifest, tokenizer_sha256: str, key: str) -> None:
    """Raise a ConfigError that names the key where something is of another tokenizer."""
    trained_on = trained_from(manifest).get("tokenizer", tokenizer_sha256)
    # A bundle's tokenizer is rounded, and so has another hash than the run's that it was made of.
    if tokenizer_sha256 not in {trained_on, manifest.tokenizer_sha256}:
        raise ConfigError(f"{key}: made by another tokenizer than the model's")


def trained_from(manifest: Manifest) -> dict[str, JsonValue]:
    """Hashes of what the transformer was trained from, by name; empty where that is not told."""
    transformer = manifest.provenance.get("transformer")
    inputs = transformer.get("inputs") if isinstance(transformer, dict) else None
    return inputs if isinstance(inputs, dict) else {}
