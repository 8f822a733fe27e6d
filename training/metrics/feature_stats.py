"""Features of generated images, and their distances from those of real ones.

Legend: N images, L positions, F features, C classes of an extractor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from training.metrics import classifier, efficientnet
from training.metrics.fidelity import (
    Extractor,
    inception_score,
    kernel_distance,
    precision_recall,
)
from training.metrics.reference import Reference, Statistics
from training.metrics.samples import Samples

AGREEMENT = {  # metrics of the extractors whose logits are of the model's classes
    classifier.LABEL: "class_agreement",
    efficientnet.LABEL: "class_agreement_efficientnet",
}


class FeatureStats:
    """What is kept of generated images: features, sums, counts."""

    def __init__(self, entropies_shape: tuple[int, int]) -> None:
        self.count = 0
        self.agreed: dict[str, int] = {}  # images that a classifier gives the class asked for
        self.entropies = np.zeros(entropies_shape, np.float64)
        self._features: dict[str, list[Tensor]] = {}
        self._logits: dict[str, list[Tensor]] = {}

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Take in what `extract` found of a batch."""
        self.count += len(part["labels"])
        self.entropies += part["entropies"].numpy()
        for name, values in part.items():
            label, _, kind = name.partition(".")
            if kind == "features":
                self._features.setdefault(label, []).append(values)
            elif kind == "logits":
                self._logits.setdefault(label, []).append(values)
                if label in AGREEMENT:
                    agreed = int((values.argmax(1) == part["labels"]).sum())
                    self.agreed[label] = self.agreed.get(label, 0) + agreed

    def agreement(self) -> dict[str, float]:
        """Share of the images that each classifier gives the class asked for, by metric."""
        return {AGREEMENT[label]: agreed / self.count for label, agreed in self.agreed.items()}

    def of(self, label: str) -> tuple[Tensor, Tensor | None]:
        """Features and, if it gives any, logits of all images, by one extractor."""
        logits = torch.cat(self._logits[label]) if label in self._logits else None
        return torch.cat(self._features[label]), logits


def extract(batch: Samples, extractors: Sequence[Extractor]) -> dict[str, Tensor]:
    """What is kept of a batch: ``labels``, ``entropies`` summed, and of each extractor by label."""
    part = {
        "labels": torch.from_numpy(batch.labels),
        "entropies": torch.from_numpy(batch.entropies.sum(axis=0, dtype=np.float64)),
    }
    for extractor in extractors:
        features, logits = extractor(batch.pixels)
        part[f"{extractor.label}.features"] = features
        if logits is not None:
            part[f"{extractor.label}.logits"] = logits
    return part


def compare(
    label: str,
    features: Tensor,
    logits: Tensor | None,
    reference: Reference | None,
    resamples: int = 0,
) -> dict[str, float]:
    """Every metric that an extractor gives, named after it.

    Parameters
    ----------
    label : ``inception``, ``vgg``, ``classifier`` or ``efficientnet``
    features, logits : of generated images, float32 (N, F) and (N, C)
    reference : of real ones; without it there is the Inception score alone
    resamples : of the generated images, with replacement, for the standard error of a Fréchet
        distance (Efron's bootstrap); 0 gives none
    """
    metrics: dict[str, float] = {}
    if reference is not None and reference.accuracy is not None:
        metrics[f"{label}_accuracy"] = reference.accuracy
    if label == "inception" and logits is not None and len(logits) >= 10:
        metrics |= inception_score(logits)
    if reference is None:
        return metrics
    if label != "vgg":
        name = "frechet_inception_distance" if label == "inception" else f"frechet_{label}_distance"
        metrics[name] = Statistics.of(features).distance(reference.statistics)
        if resamples:
            metrics[f"{name}_error"] = _bootstrap(features, reference.statistics, resamples)
    if reference.features is not None:
        if label == "inception":
            metrics |= kernel_distance(features, reference.features)
        shares = precision_recall(features, reference.features)
        metrics |= {f"{name}_{label}": value for name, value in shares.items()}
    return metrics


def _bootstrap(features: Tensor, real: Statistics, resamples: int) -> float:
    """Standard deviation of the distances of resampled features; the same in every run.

    The trace of ``(S S')^(1/2)`` is that of ``(R S R)^(1/2)`` with R the root of S', which the real
    images alone give; with S = X'X it is the sum of the singular values of XR. The eigenvalues of
    a symmetric matrix are there many times sooner than those that `Statistics` computes.
    """
    generator, count = torch.Generator().manual_seed(0), len(features)
    mu, sigma = (torch.from_numpy(array).double() for array in (real.mu, real.sigma))
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    distances = []
    for _ in range(resamples):
        drawn = features[torch.randint(count, (count,), generator=generator)].double()
        mean = drawn.mean(0)
        centred = (drawn - mean) / math.sqrt(count - 1)
        product = centred @ root
        gram = product @ product.T if count < product.shape[1] else product.T @ product
        overlap = np.sqrt(np.linalg.eigvalsh(gram.numpy()).clip(min=0)).sum()
        traces = centred.square().sum() + sigma.trace()
        distances.append(float((mean - mu).square().sum() + traces) - 2 * overlap)
    return float(np.std(distances, ddof=1))


def caution(label: str, features: Tensor) -> list[str]:
    """What to say of a Fréchet distance of too few images, float32 (N, F), for its covariance."""
    count, width = features.shape
    if count > width:
        return []
    few = f"{count} images in {width} features"
    return [f"{label}: a Fréchet distance of {few} compares only with others of that number"]
