"""Requests of many kinds, and what their images have to be, byte for byte."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.device import choose_dtype
from masc_core.generation.generate import generate
from masc_core.images import encode_image
from masc_core.sampling.params import SamplingParams

AT_ONCE = 16

Body = dict[str, Any]


def some_requests(num: int, seed: int, *, num_classes: int, max_images: int = 2) -> list[Body]:
    """Bodies with everything that may differ in a batch."""
    rng = random.Random(seed)
    return [
        {
            "class_id": rng.randrange(num_classes),
            "cfg_scale": rng.choice([1.0, 2.0, 3.5]),
            "num_images": rng.randint(1, max_images),
            "seed": 1000 * i,
            "temperature": rng.choice([0.7, 1.0]),
            "top_k": rng.choice([0, 0, 20]),
            "decoding": rng.choice(["uniform", "frequency"]),
            "format": "png",
        }
        for i in range(num)
    ]


@dataclass(frozen=True, slots=True)
class Oracle:
    """The plain loop over one version of a model."""

    bundle: Bundle

    @classmethod
    def of(cls, folder: Path) -> Oracle:
        """The oracle of a bundle, in the precision that workers choose."""

        device = torch.device("cpu")
        return cls(load_bundle(folder, device, choose_dtype("auto", device)))

    def files(self, bodies: Sequence[Body]) -> list[list[bytes]]:
        """The images of each request, as workers with one thread make them.

        Codes do not depend on the number of threads, but the last bit of a pixel does.
        """

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._files(bodies)
        finally:
            torch.set_num_threads(before)

    def _files(self, bodies: Sequence[Body]) -> list[list[bytes]]:
        params_list = [params for body in bodies for params in params_of(body)]
        files: list[bytes] = []
        describe = self.bundle.manifest.describe_image
        for start in range(0, len(params_list), AT_ONCE):
            batch = params_list[start : start + AT_ONCE]
            made = generate(self.bundle.transformer, self.bundle.code_sampler, batch)
            for params, image in zip(batch, self.bundle.render(made.codes), strict=True):
                files.append(encode_image(image, "png", describe(params)))
        images = iter(files)
        return [[next(images) for _ in range(body["num_images"])] for body in bodies]


def params_of(body: Body) -> list[SamplingParams]:
    """One an image."""
    return [
        SamplingParams(
            class_id=body["class_id"],
            cfg_scale=body["cfg_scale"],
            seed=body["seed"] + i,
            temperature=body["temperature"],
            top_k=body["top_k"],
            decoding=body["decoding"],
        )
        for i in range(body["num_images"])
    ]


def files_of(answer: Any) -> list[bytes]:
    """The images of an answer to `POST /generate`."""
    return [base64.b64decode(image["b64"]) for image in answer["images"]]
