"""A job that a worker has claimed: its images as they come, and at the end its result."""

from __future__ import annotations

import math
import time
from dataclasses import fields

from torch import Tensor

from masc_core.bundle.manifest import Manifest
from masc_core.errors import (
    InvalidFieldError,
    NoWorkerError,
    UnknownClassError,
    UnknownModelError,
)
from masc_core.sampling.params import SamplingParams, check_cluster_filters
from worker.engine.request import ImageTask
from worker.jobs.job import MAX_IMAGES, GenerationRequest, Job, Lease
from worker.jobs.outcome import ImageOutput, JobResult, Timings
from worker.model.loaded_version import EncodedImage, LoadedVersion


class RunningJob:
    """Progress of one claimed job, whose images one version of the model makes."""

    def __init__(self, lease: Lease, loaded: LoadedVersion) -> None:
        self.lease, self.loaded = lease, loaded
        self.deadline = time.monotonic() + lease.seconds_left
        self.is_started = False
        self._queue_seconds = 0.0  # of the image that waited the longest
        self._encoded: list[EncodedImage] = []
        self._outputs: dict[int, ImageOutput] = {}

    @property
    def job(self) -> Job:
        """What was submitted."""
        return self.lease.job

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""
        return self.lease.job.request

    @property
    def is_complete(self) -> bool:
        """Whether every image is there."""
        return len(self._outputs) == self.request.num_images

    def tasks(self) -> list[ImageTask]:
        """One task an image, in order; with every row on its way where somebody watches.

        Raises
        ------
        InvalidFieldError : a parameter is out of its range
        """
        rows = tuple(range(1, self.loaded.manifest.grid)) if self.job.previews else ()
        return [
            ImageTask(
                self.job.id, index, image_params(self.request, index), rows, self.request.format
            )
            for index in range(self.request.num_images)
        ]

    def image_started(self, at: float) -> None:
        """An image of this job came into the engine, ``at`` seconds since the epoch."""
        self.is_started = True
        self._queue_seconds = max(0.0, at - self.job.submitted_at)

    def add_image(self, encoded: EncodedImage) -> ImageOutput:
        """Add an image, and return it as it goes into the result."""
        index, image, manifest = encoded.task.index, encoded.image, self.loaded.manifest
        bits, ratio = _mean_and_ratio(image.entropies, manifest.num_clusters)
        cluster_bits, cluster_ratio = _mean_and_ratio(
            image.cluster_entropies, *manifest.partitions[:1]
        )
        self._encoded.append(encoded)
        self._outputs[index] = ImageOutput(
            data=encoded.file.data,
            seed=self.request.image_seed(index),
            entropies=tuple(image.entropies.tolist()),
            entropy_bits=bits,
            entropy_ratio=ratio,
            cluster_entropies=tuple(image.cluster_entropies.tolist()),
            cluster_entropy_bits=cluster_bits,
            cluster_entropy_ratio=cluster_ratio,
        )
        return self._outputs[index]

    @property
    def code_seconds(self) -> float:
        """Time from cluster to code, of the image that took the longest."""
        return max(encoded.image.code_seconds for encoded in self._encoded)

    def result(self) -> JobResult:
        """The images in order, with the model that made them.

        Timings are those of the image that took the longest, except ``complete``, ``vq_decode``
        and ``encode``, which are summed over the images.
        """
        manifest = self.loaded.manifest
        return JobResult(
            images=tuple(self._outputs[index] for index in range(self.request.num_images)),
            model=manifest.name,
            version=manifest.version,
            weights_sha256=manifest.weights_sha256,
            timings=Timings(
                queue=self._queue_seconds,
                prefill=max(encoded.image.prefill_seconds for encoded in self._encoded),
                decode=max(encoded.image.decode_seconds for encoded in self._encoded),
                complete=sum(encoded.file.complete_seconds for encoded in self._encoded),
                vq_decode=sum(encoded.file.vq_decode_seconds for encoded in self._encoded),
                encode=sum(encoded.file.encode_seconds for encoded in self._encoded),
                total=max(0.0, time.time() - self.job.submitted_at),
            ),
        )


def image_params(request: GenerationRequest, index: int) -> SamplingParams:
    """Return what the engine needs to know of image ``index``."""
    shared = {field.name: getattr(request, field.name) for field in fields(SamplingParams)}
    return SamplingParams(**shared | {"seed": request.image_seed(index)})


def check_request(request: GenerationRequest, manifest: Manifest) -> None:
    """Refuse what this bundle cannot do, before it gets into a batch.

    `SamplingParams` checks the rest.

    Front ends refuse it too; but one may be newer, older, or know another version of the model. A
    request that was made for another version is done, as long as the class is called the same.

    Raises
    ------
    UnknownModelError, UnknownClassError, InvalidFieldError
    NoWorkerError : it is for another version, whose class of that id is another one
    """
    if request.model != manifest.name:
        raise UnknownModelError("model", f"this worker serves {manifest.name!r}")
    is_other = request.version not in ("", manifest.version)
    if is_other and not _means_the_same(request, manifest):
        raise NoWorkerError(f"no worker serves {manifest.name} {request.version} any more")
    if not 0 <= request.class_id < manifest.gpt.num_classes:
        raise UnknownClassError(
            "class_id", f"{manifest.name} has classes 0 to {manifest.gpt.num_classes - 1}"
        )
    if request.decoding not in manifest.decodings:
        raise InvalidFieldError("decoding", f"{manifest.name} offers no {request.decoding!r}")
    check_cluster_filters(request, has_partition=bool(manifest.partitions))
    if not 1 <= request.num_images <= MAX_IMAGES:
        raise InvalidFieldError("num_images", f"num_images must be from 1 to {MAX_IMAGES}")


def _mean_and_ratio(entropies: Tensor, num_outcomes: int = 1) -> tuple[float, float]:
    """Mean of the bits, 0 of none, and its share of the most that there can be."""
    mean = math.fsum(entropies.tolist()) / max(1, len(entropies))
    return mean, mean / math.log2(max(2, num_outcomes))


def _means_the_same(request: GenerationRequest, manifest: Manifest) -> bool:
    names = manifest.class_names
    return request.class_id in range(len(names)) and names[request.class_id] == request.class_name
