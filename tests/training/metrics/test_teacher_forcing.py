from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.bundle.read import Bundle
from masc_core.errors import ConfigError
from tests.training.tiny_codes import write_cache
from training.data.code_cache import CodeCache
from training.metrics import teacher_forcing
from training.metrics.teacher_forcing import check_codes, teacher_forced

IMAGES = 7


def cache_for(bundle: Bundle, folder: Path, **changes: object) -> CodeCache:
    manifest = bundle.manifest
    header: dict[str, object] = {
        "image_size": manifest.image_size,
        "num_codes": manifest.num_codes,
        "class_names": manifest.class_names,
    }
    generator = np.random.default_rng(0)
    codes = generator.integers(0, manifest.num_codes, (IMAGES, 2, manifest.num_positions))
    labels = generator.integers(0, len(manifest.class_names), IMAGES)
    return CodeCache.open(write_cache(folder, codes, labels, **header | changes))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_against_the_plain_loop(
    bundle: Bundle, tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_for(bundle, tmp_path / "codes")
    prior, length = bundle.code_sampler.prior, bundle.manifest.num_positions
    monkeypatch.setattr(teacher_forcing, "LOGITS_AT_ONCE", 3 * length * prior.num_clusters)
    measured = teacher_forced(bundle, cache, scale)
    entropy, cross = np.zeros(length), np.zeros(length)
    for image in range(IMAGES):
        clusters = prior.encode(torch.from_numpy(cache.codes[0][image, 0].astype(np.int64)))
        label = torch.tensor([cache.labels[image]])
        with torch.no_grad():
            cond = bundle.transformer(label, clusters[None, :-1])[0].double()
            null_class = torch.tensor([len(bundle.manifest.class_names)])
            null = bundle.transformer(null_class, clusters[None, :-1])[0].double()
        for p in range(length):
            logits = null[p] + scale * (cond[p] - null[p])
            probabilities = logits.softmax(0)
            entropy[p] -= float((probabilities * probabilities.log2()).sum())
            cross[p] -= float(probabilities[clusters[p]].log2())
    assert measured.entropy == pytest.approx(entropy / IMAGES, rel=1e-4)
    assert measured.cross_entropy == pytest.approx(cross / IMAGES, rel=1e-4)
    assert measured.num_images == IMAGES
    metrics = measured.metrics(bundle.manifest.num_clusters)
    sizes = prior.sizes[prior.encode(cache.codes[0][:, 0].astype(np.int64))]
    assert metrics["member_bits"] == pytest.approx(float(np.log2(sizes).mean()))
    assert metrics["fine_entropy_bits"] == pytest.approx(
        metrics["teacher_forced_entropy_bits"] + metrics["member_bits"]
    )
    largest = math.log2(bundle.manifest.num_clusters)
    assert metrics["teacher_forced_entropy_ratio"] == pytest.approx(
        metrics["teacher_forced_entropy_bits"] / largest
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_codes": 999}, "have 999 codes, the model"),
        ({"class_names": ("a",)}, "it lacks .*'a'"),
    ],
)
def test_codes_of_another_model_are_refused(
    bundle: Bundle, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    cache = cache_for(bundle, tmp_path / "codes", **change)
    with pytest.raises(ConfigError, match=named):
        check_codes(bundle, cache)
