"""What a worker measures, under the names that dashboards rely on.

No label grows with traffic: there is none for a class, a request or a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from masc_core.bundle.read import Bundle
from worker.engine.engine import EngineMode
from worker.jobs.job import GenerationRequest
from worker.jobs.outcome import ImageOutput, JobResult
from worker.jobs.stages import TIMED_STAGES, stage_histogram

STEP_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BITS_BUCKETS = tuple(range(1, 15))
RATIO_BUCKETS = tuple(i / 20 for i in range(1, 21))


class WorkerMetrics:
    """Counters, histograms and gauges of one worker.

    Parameters
    ----------
    registry : where they are registered, once; in the embedded mode the front end's too
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.images = counter("masc_images_total", "Images made.", ["model", "format"])
        self.tokens = counter(
            "masc_tokens_total",
            "Positions of images made, conditional, and the unconditional ones for guidance.",
            ["kind"],
        )
        self.steps = counter("masc_engine_steps_total", "Steps of the transformer.")
        self.stage_seconds = stage_histogram(registry)
        self.step_seconds = histogram(
            "masc_decode_step_duration_seconds",
            "Duration of a step of the transformer.",
            buckets=STEP_BUCKETS,
        )
        self.batch_rows = histogram(
            "masc_batch_rows", "Rows in each step's batch.", buckets=ROW_BUCKETS
        )
        self.entropy_bits = histogram(
            "masc_prediction_entropy_bits",
            "Mean entropy of an image's predictions, bits a position.",
            buckets=BITS_BUCKETS,
        )
        self.entropy_ratio = histogram(
            "masc_prediction_entropy_ratio",
            "Mean entropy of an image's predictions over its maximum, the logarithm of K.",
            buckets=RATIO_BUCKETS,
        )
        self.cluster_entropy_bits = histogram(
            "masc_prediction_cluster_entropy_bits",
            "The same of the clusters of a partition, of models that have one.",
            buckets=BITS_BUCKETS,
        )
        self.rows_active = gauge("masc_batch_rows_active", "Rows of the batch in use.")
        self.rows_capacity = gauge("masc_batch_rows_capacity", "Rows that the batch can hold.")
        self.last_step = gauge(
            "masc_last_step_timestamp_seconds",
            "When the transformer last made a step, seconds since the epoch.",
        )
        self.model_info = gauge(
            "masc_model_info",
            "The model that is served, in labels.",
            ["model", "version", "weights_sha256", "clusters", "tokens", "dtype"],
        )
        self.engine_mode = gauge(
            "masc_engine_mode",
            "How steps are made: graphs, captured; compiled; eager; or cpu, without a GPU.",
            ["mode"],
        )
        self._served: dict[str, Sequence[str]] = {}  # by model, the labels of its version
        self._modes: dict[str, EngineMode] = {}  # by model
        self.gpu_memory = gauge(
            "masc_gpu_memory_bytes",
            "Memory of the GPU: allocated by tensors, reserved for them, used by all, total.",
            ["kind"],
        )

    def stop_serving(self, name: str) -> None:
        """Say of a model no longer that a version of it is served."""
        if (labels := self._served.pop(name, None)) is not None:
            self.model_info.remove(*labels)

    def serve(self, bundle: Bundle) -> None:
        """Say which version is served, and from now on how much memory of its GPU is taken."""
        manifest = bundle.manifest
        if manifest.name in self._served:
            self.model_info.remove(*self._served[manifest.name])
        labels = self._served[manifest.name] = (
            manifest.name,
            manifest.version,
            manifest.weights_sha256,
            str(manifest.num_clusters),
            str(manifest.gpt.block_size),
            str(bundle.dtype).removeprefix("torch."),
        )
        self.model_info.labels(*labels).set(1)
        if bundle.device.type == "cuda":
            for kind, look in memory_of(bundle.device).items():
                self.gpu_memory.labels(kind=kind).set_function(look)

    def engine(self, model: str, mode: EngineMode) -> None:
        """Say how the steps of a model are made, in the version that was prepared last."""
        self._modes[model] = mode
        self.engine_mode.clear()
        for other in set(self._modes.values()):
            self.engine_mode.labels(mode=other).set(1)

    def step(self, rows: int, seconds: float) -> None:
        """Record one step of the transformer."""
        self.steps.inc()
        self.batch_rows.observe(rows)
        self.step_seconds.observe(seconds)
        self.last_step.set(time.time())

    def image(self, request: GenerationRequest, image: ImageOutput) -> None:
        """Record an image that is made and encoded."""
        self.images.labels(model=request.model, format=request.format).inc()
        positions = len(image.entropies)
        self.tokens.labels(kind="conditional").inc(positions)
        if request.cfg_scale != 1.0:
            self.tokens.labels(kind="unconditional").inc(positions)
        self.entropy_bits.observe(image.entropy_bits)
        self.entropy_ratio.observe(image.entropy_ratio)
        if image.cluster_entropies:
            self.cluster_entropy_bits.observe(image.cluster_entropy_bits)

    def job(self, result: JobResult, code_seconds: float) -> None:
        """Record the stages of a job that is done; its timings leave cluster to code out."""
        self.stage_seconds.labels(stage="cluster_to_code").observe(code_seconds)
        seconds_of = result.timings.by_stage()
        for stage in TIMED_STAGES:
            if stage in seconds_of:
                self.stage_seconds.labels(stage=stage).observe(seconds_of[stage])


def memory_of(device: torch.device) -> Mapping[str, Callable[[], int]]:
    """How to look at the memory of a GPU, by kind; the last two count all processes, in bytes."""

    def used() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    return {
        "allocated": lambda: torch.cuda.memory_allocated(device),
        "reserved": lambda: torch.cuda.memory_reserved(device),
        "used": used,
        "total": lambda: torch.cuda.mem_get_info(device)[1],
    }
