from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.bundle import Bundle, load_bundle
from masc_core.errors import ConfigError
from tests.tiny_bundle import save_tiny_bundle
from training.data.code_cache import CodeCache, CodeIndex, write_index, write_shard
from training.evaluation import teacher_forcing
from training.evaluation.teacher_forcing import check_codes, teacher_forced

IMAGES = 7


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return load_bundle(root / "tiny" / "1")


def cache_for(bundle: Bundle, folder: Path, **changes: object) -> CodeCache:
    manifest = bundle.manifest
    values = {
        "tokenizer_sha256": "0" * 64,
        "files_sha256": "0" * 64,
        "image_size": manifest.image_size,
        "num_codes": manifest.num_codes,
        "num_positions": manifest.num_positions,
        "variants": "flip",
        "crop_range": 1.0,
        "num_files": IMAGES,
        "shard_files": IMAGES,
        "class_names": manifest.class_names,
    }
    index = CodeIndex.model_validate(values | changes)
    generator = np.random.default_rng(0)
    shape = (IMAGES, 2, index.num_positions)
    codes = generator.integers(0, manifest.num_codes, shape).astype(index.dtype)
    labels = generator.integers(0, len(manifest.class_names), IMAGES)
    folder.mkdir(exist_ok=True)
    shard = write_shard(folder, 0, codes, labels)
    write_index(folder, index.model_copy(update={"shards": (shard,)}))
    return CodeCache.open(folder)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_against_the_plain_loop(
    bundle: Bundle, tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_for(bundle, tmp_path / "codes")
    prior, length = bundle.decoder.prior, bundle.manifest.num_positions
    monkeypatch.setattr(teacher_forcing, "LOGITS_AT_ONCE", 3 * length * prior.num_clusters)
    found = teacher_forced(bundle, cache, scale)
    entropy, cross = np.zeros(length), np.zeros(length)
    for image in range(IMAGES):
        clusters = prior.encode(torch.from_numpy(cache.codes[0][image, 0].astype(np.int64)))
        label = torch.tensor([cache.labels[image]])
        with torch.no_grad():
            cond = bundle.model(label, clusters[None, :-1])[0].double()
            null_class = torch.tensor([len(bundle.manifest.class_names)])
            null = bundle.model(null_class, clusters[None, :-1])[0].double()
        for p in range(length):
            logits = null[p] + scale * (cond[p] - null[p])
            probabilities = logits.softmax(0)
            entropy[p] -= float((probabilities * probabilities.log2()).sum())
            cross[p] -= float(probabilities[clusters[p]].log2())
    assert found.entropy == pytest.approx(entropy / IMAGES, rel=1e-4)
    assert found.cross_entropy == pytest.approx(cross / IMAGES, rel=1e-4)
    assert found.num_images == IMAGES
    figures = found.figures(bundle.manifest.num_clusters)
    sizes = prior.sizes[prior.encode(cache.codes[0][:, 0].astype(np.int64))]
    assert figures["member_bits"] == pytest.approx(float(np.log2(sizes).mean()))
    assert figures["fine_entropy_bits"] == pytest.approx(
        figures["teacher_forced_entropy_bits"] + figures["member_bits"]
    )
    largest = math.log2(bundle.manifest.num_clusters)
    assert figures["teacher_forced_entropy_ratio"] == pytest.approx(
        figures["teacher_forced_entropy_bits"] / largest
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [({"num_codes": 999}, "other codes"), ({"class_names": ("a",)}, "other classes")],
)
def test_codes_of_another_model_are_refused(
    bundle: Bundle, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    cache = cache_for(bundle, tmp_path / "codes", **change)
    with pytest.raises(ConfigError, match=named):
        check_codes(bundle, cache)
