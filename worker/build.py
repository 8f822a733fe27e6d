"""A worker from its settings: bundle, engine, metrics and queue joined."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import (
    choose_dtype,
    make_repeatable,
    resolve_device,
    set_threads,
    use_device,
)
from masc_core.errors import ConfigError
from masc_core.generation.batch import Batch
from worker.engine.cuda_graphs import GraphBatch
from worker.engine.engine import BatchFactory, Engine
from worker.engine.fallback import Backend, FallbackBatch
from worker.jobs.queue import JobConsumer
from worker.jobs.tracing import open_tracer
from worker.loop import WorkerLoop
from worker.metrics import WorkerMetrics
from worker.model.loaded_model import LoadedModel
from worker.model.reloader import ModelReloader
from worker.model.threads import available_cores, numbers_to_try
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


def build_worker(
    settings: WorkerSettings, queue: JobConsumer, metrics_registry: CollectorRegistry
) -> WorkerLoop:
    """Load the active version of the model to serve, and return the loop that serves it.

    Run its ``run`` in a thread or in the main one; its ``stop`` ends it.

    Parameters
    ----------
    settings : which model, where, how
    queue : where jobs come from
    metrics_registry : where the worker's metrics are registered

    Raises
    ------
    ConfigError : no such model or device, several models and none is named, or settings that
        exclude each other
    ArtifactError : no model, or a file of its bundle is missing, truncated or altered
    """
    set_threads(settings.threads)
    device = resolve_device(settings.device)
    backends = engine_backends(settings, device)
    cores = choose_cores(settings, device)
    models = Registry(settings.models_dir)
    name = models.default(settings.default_model)
    metrics = WorkerMetrics(metrics_registry)
    make_batch = partial(FallbackBatch, backends=backends, on_prepared=metrics.engine)

    def load(folder: Path) -> LoadedModel:
        use_device(device)  # here, and later in the reloader's thread, which also warms up
        bundle = load_bundle(folder, device, choose_dtype(settings.dtype, device))
        logger.info("loaded %s %s onto %s", name, bundle.manifest.version, device)
        rows = settings.max_batch
        engine = Engine(bundle.model, bundle.decoder, rows, metrics.step, make_batch)
        return LoadedModel(bundle, engine, cores=cores)

    loaded = load(models.path(name))
    return WorkerLoop(
        queue,
        loaded,
        metrics,
        f"{socket.gethostname()}-{os.getpid()}",
        reloader=ModelReloader(models, name, loaded.manifest.version, load),
        tracer=open_tracer("masc-worker", settings.traces_endpoint),
        stall_seconds=settings.stall_seconds,
        drain_seconds=settings.drain_seconds,
    )


def choose_cores(settings: WorkerSettings, device: torch.device) -> list[int]:
    """Numbers of threads to try where none is given; on a GPU torch's own is as good as any."""
    if settings.threads is not None or device.type != "cpu":
        return []
    return numbers_to_try(available_cores())


def engine_backends(settings: WorkerSettings, device: torch.device) -> Sequence[Backend]:
    """How the batch may be stepped, the best backend first.

    Images that must have the same bits in any company get no other backend.

    Raises
    ------
    ConfigError : see `choose_batch`
    """
    best = choose_batch(settings, device)
    if device.type == "cpu":
        return [Backend("cpu", best)]
    eager = Backend("eager", partial(Batch, kernels=False))  # whatever Triton makes of this machine
    if not settings.cuda_graphs:
        return [Backend("eager", best), eager]
    if settings.deterministic:
        return [Backend("graphs", best)]
    return [
        Backend("graphs", best),
        Backend("compiled", partial(GraphBatch, recorded=False)),
        eager,
    ]


def choose_batch(settings: WorkerSettings, device: torch.device) -> BatchFactory:
    """What steps the batch; on the CPU images have the same bits in any company anyway.

    Raises
    ------
    ConfigError : deterministic on a GPU without recorded steps
    """
    if device.type == "cpu":
        return Batch
    if settings.deterministic:
        if not settings.cuda_graphs:
            raise ConfigError("MASC_DETERMINISTIC: needs MASC_CUDA_GRAPHS on a GPU")
        make_repeatable()
    return (
        partial(GraphBatch, deterministic=settings.deterministic) if settings.cuda_graphs else Batch
    )
