"""A job that a worker has claimed: its images as they come, and at the end its result.

This module does not know how images are made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from masc_core.errors import (
    InvalidFieldError,
    NoWorkerError,
    UnknownClassError,
    UnknownModelError,
)
from masc_core.image_spec import ImageSpec
from masc_core.manifest import Manifest
from worker.engine.request import FinishedImage, ImageTask
from worker.jobs.job import (
    GenerationRequest,
    ImageOutput,
    Job,
    JobResult,
    Timings,
)


class RunningJob:
    """Progress of one job.

    Times are those of the image that waited or ran the longest, except ``vq_decode`` and
    ``encode``, which are summed over the images.

    Parameters
    ----------
    job : as it was claimed
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.queue_seconds = 0.0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.code_seconds = 0.0
        self.vq_decode_seconds = 0.0
        self.encode_seconds = 0.0
        self._images: dict[int, ImageOutput] = {}

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""
        return self.job.request

    @property
    def is_complete(self) -> bool:
        """Whether every image is there."""
        return len(self._images) == self.request.num_images

    def tasks(self) -> list[ImageTask]:
        """One task an image, in order.

        Raises
        ------
        InvalidFieldError : a parameter is out of its range
        """
        return [
            ImageTask(self.job.id, index, image_spec(self.request, index))
            for index in range(self.request.num_images)
        ]

    def started(self) -> None:
        """An image of this job enters the engine."""
        self.queue_seconds = max(0.0, time.time() - self.job.submitted_at)

    def generated(self, image: FinishedImage, vq_decode_seconds: float) -> None:
        """The codes of an image are there, and its pixels."""
        self.prefill_seconds = max(self.prefill_seconds, image.prefill_seconds)
        self.decode_seconds = max(self.decode_seconds, image.decode_seconds)
        self.code_seconds = max(self.code_seconds, image.code_seconds)
        self.vq_decode_seconds += vq_decode_seconds

    def encoded(
        self, index: int, data: bytes, entropies: Sequence[float], max_bits: float, seconds: float
    ) -> ImageOutput:
        """Take an image's file; ``max_bits`` is the logarithm of K."""
        self.encode_seconds += seconds
        bits = math.fsum(entropies) / len(entropies)
        image = ImageOutput(
            data=data,
            seed=self.request.image_seed(index),
            entropies=tuple(entropies),
            entropy_bits=bits,
            entropy_ratio=bits / max_bits if max_bits else 0.0,
        )
        self._images[index] = image
        return image

    def result(self, manifest: Manifest) -> JobResult:
        """Return the images in order, with the model that made them."""
        return JobResult(
            images=tuple(self._images[index] for index in range(self.request.num_images)),
            model=manifest.name,
            version=manifest.version,
            weights_sha256=manifest.weights_sha256,
            timings=Timings(
                queue=self.queue_seconds,
                prefill=self.prefill_seconds,
                decode=self.decode_seconds,
                vq_decode=self.vq_decode_seconds,
                encode=self.encode_seconds,
                total=max(0.0, time.time() - self.job.submitted_at),
            ),
        )


def image_spec(request: GenerationRequest, index: int) -> ImageSpec:
    """Return what the engine needs to know of image ``index``."""
    return ImageSpec(
        class_id=request.class_id,
        cfg_scale=request.cfg_scale,
        seed=request.image_seed(index),
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        decoding=request.decoding,
    )


def check_request(request: GenerationRequest, manifest: Manifest) -> None:
    """Refuse what this bundle cannot do, before it gets into a batch; `ImageSpec` checks the rest.

    Front ends refuse it too; but one may be newer, older, or know another version of the model.

    Raises
    ------
    UnknownModelError, UnknownClassError, InvalidFieldError
    NoWorkerError : it is for another version than this worker has by now
    """
    if request.model != manifest.name:
        raise UnknownModelError("model", f"this worker serves {manifest.name!r}")
    if request.version not in ("", manifest.version):
        raise NoWorkerError(f"no worker serves {manifest.name} {request.version} any more")
    if not 0 <= request.class_id < manifest.gpt.num_classes:
        raise UnknownClassError(
            "class_id", f"{manifest.name} has classes 0 to {manifest.gpt.num_classes - 1}"
        )
    if request.decoding not in manifest.decodings:
        raise InvalidFieldError("decoding", f"{manifest.name} offers no {request.decoding!r}")
    if request.num_images < 1:
        raise InvalidFieldError("num_images", "num_images must be at least 1")
