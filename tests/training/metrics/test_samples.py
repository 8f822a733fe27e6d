from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from masc_core.bundle.read import Bundle
from masc_core.generation.generate import generate
from training.metrics.samples import make_images, sample
from training.metrics.table import default_params


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
    params_list = [replace(default_params(bundle), class_id=i) for i in range(len(small))]
    codes = generate(bundle.model, bundle.decoder, params_list).codes
    images = bundle.tokenizer.decode_codes(codes)
    # LlamaGen's bicubic resize of floats, by its definition: at half the size every pixel lies
    # between two, with the weights (-3, 19, 19, -3) / 32 for a of -3/4; borders are repeated.
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    halved = torch.einsum("bcijkl,k,l->bcij", padded.unfold(2, 4, 2).unfold(3, 4, 2),
                          weights, weights)  # fmt: skip
    expected = (127.5 * halved + 128).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(small - expected + 0.5).max() < 0.501
