from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.bundle.read import Bundle
from masc_core.generation.generate import generate
from training.metrics.bundle_metrics import default_params
from training.metrics.samples import image_archive, make_images, sample


def test_classes_are_interleaved_and_balanced(bundle: Bundle) -> None:
    params = replace(default_params(bundle), seed=7)
    batches = list(sample(bundle, params, 3, batch_size=4))
    labels = np.concatenate([batch.labels for batch in batches])
    assert labels.tolist() == [0, 1, 2, 3, 4] * 3
    assert [len(batch.labels) for batch in batches] == [4, 4, 4, 3]
    pixels = np.concatenate([batch.pixels for batch in batches])
    alone, entropies = make_images(bundle, [replace(params, class_id=2, seed=8)])
    assert np.array_equal(pixels[7], alone[0])
    assert np.array_equal(np.concatenate([b.entropies for b in batches])[7], entropies[0])


def test_images_are_resized_when_asked(bundle: Bundle) -> None:
    size = bundle.manifest.image_size
    small = next(sample(bundle, default_params(bundle), 1, image_size=size // 2)).pixels
    assert small.shape[1:] == (size // 2, size // 2, 3)
    params = [replace(default_params(bundle), class_id=i) for i in range(len(small))]
    codes = generate(bundle.transformer, bundle.code_sampler, params).codes
    images = bundle.tokenizer.decode_codes(codes)
    # LlamaGen's bicubic resize of floats, by its definition: at half the size every pixel lies
    # between two, with the weights (-3, 19, 19, -3) / 32 for a of -3/4; borders are repeated.
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    halved = torch.einsum("bcijkl,k,l->bcij", padded.unfold(2, 4, 2).unfold(3, 4, 2),
                          weights, weights)  # fmt: skip
    expected = (127.5 * halved + 128).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(small - expected + 0.5).max() < 0.501


def test_numpy_reads_what_was_written_in_batches(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    with image_archive(tmp_path / "s.npz", 5, 4) as append:
        append(pixels[:3])
        append(pixels[3:])
    with np.load(tmp_path / "s.npz") as found:
        assert found.files == ["arr_0"]
        assert np.array_equal(found["arr_0"], pixels)


def test_an_interrupted_archive_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), image_archive(tmp_path / "s.npz", 5, 4):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
