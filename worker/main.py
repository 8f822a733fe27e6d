"""The process of a worker: built from its settings, run until a signal.

The loop has a thread of its own, so that a signal is received while a step runs. SIGTERM or an
interrupt lets it end what it has begun and give back the rest; a second one ends the process at
once, and the jobs go to others when their leases run out.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from masc_core.bundle.manifest import MANIFEST_FILE, read_manifest
from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, enable_determinism, resolve_device, use_device
from masc_core.errors import ArtifactError, ConfigError, EngineError
from masc_core.generation.batch import Batch
from object_storage.registry import open_registry
from worker.engine.cuda_graphs import GraphBatch
from worker.engine.engine import Backend, Engine
from worker.jobs.queue import JobConsumer
from worker.jobs.tracing import open_tracer
from worker.loop import WorkerLoop
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import LoadedVersion
from worker.model.memory import ModelMemory, free_memory, memory_need
from worker.model.served import ServedModel
from worker.model.threads import available_cores, numbers_to_try
from worker.model.versions import ModelReloader, Refusal, load_first
from worker.settings import WorkerSettings, models_to_serve

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 1.0  # between two looks whether the loop should have ended


def build_worker(
    settings: WorkerSettings, queue: JobConsumer, metrics_registry: CollectorRegistry
) -> WorkerLoop:
    """Load the active version of each model to serve, and return the loop that serves them.

    Where the active version cannot be loaded, or makes no image, its predecessor is served. Of
    several models one whose files are damaged waits for another version, and the others are served.

    Raises
    ------
    ConfigError : no such model or device, several models and none is named, settings that exclude
        each other, or models that do not fit into the memory together
    ArtifactError : no model, or a file of each bundle is missing, truncated or altered
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    backends = engine_backends(settings, device)
    cores: Sequence[int] = ()  # to try; on a GPU torch's own number is as good as any
    if settings.threads is None and device.type == "cpu":
        cores = numbers_to_try(available_cores())
    models = open_registry(settings.models_dir)
    names = models_to_serve(settings, models)
    metrics = WorkerMetrics(metrics_registry)
    dtype, rows = choose_dtype(settings.dtype, device), settings.max_batch
    memory = ModelMemory(settings.max_model_bytes, partial(free_memory, device))
    is_bounded = len(names) > 1 or settings.max_model_bytes is not None
    loading = threading.Lock()  # two at once would both find the same memory free

    def load(name: str, folder: Path) -> LoadedVersion:
        use_device(device)  # here, and later in the reloader's thread, which also warms up
        manifest = read_manifest(folder)
        if manifest.name != name:
            raise ArtifactError(folder / MANIFEST_FILE, f"is that of {manifest.name}")
        with loading:
            need = memory_need(folder, manifest, rows, dtype, device) if is_bounded else None
            if need is not None:
                memory.check(f"{name} {manifest.version}", need)
            bundle = load_bundle(folder, device, dtype)
            logger.info("loaded %s %s onto %s", name, manifest.version, device)
            parts = bundle.transformer, bundle.code_sampler
            on_prepared = partial(metrics.engine, name)
            engine = Engine(*parts, rows, metrics.step, backends, on_prepared)
            loaded = LoadedVersion(
                bundle, engine, cores=cores, image_metadata=settings.image_metadata
            )
            if need is not None:
                memory.hold(loaded, need)
        return loaded

    return WorkerLoop(
        queue,
        _load_all(models, names, load),
        metrics,
        f"{socket.gethostname()}-{os.getpid()}",
        tracer=open_tracer("masc-worker", settings.traces_endpoint),
        stall_seconds=settings.stall_seconds,
        drain_seconds=settings.drain_seconds,
    )


def _load_all(
    models: Registry, names: Sequence[str], load_named: Callable[[str, Path], LoadedVersion]
) -> list[ServedModel]:
    served: list[ServedModel] = []
    failures: list[ArtifactError] = []
    for name in names:
        load = partial(load_named, name)
        loaded: LoadedVersion | None = None
        try:
            loaded, refusal = load_first(models, name, load)
        except ArtifactError as error:
            failures.append(error)
            if len(failures) == len(names):
                raise failures[0] from None
            logger.error("%s is not served: %s", name, error)  # noqa: TRY400 - one line says it
            refusal = Refusal(_active(models, name), str(error))
        version = "" if loaded is None else loaded.manifest.version
        reloader = ModelReloader(models, name, version, load, refusal=refusal)
        served.append(ServedModel(name, loaded, reloader))
    return served


def _active(models: Registry, name: str) -> str:
    try:
        return models.current(name)
    except ArtifactError:
        return "unknown"


def engine_backends(settings: WorkerSettings, device: torch.device) -> Sequence[Backend]:
    """How the batch may be stepped, the best backend first.

    With MASC_DETERMINISTIC there is one backend and no fallback, because backends round
    differently; a CPU is always bit-exact.

    Raises
    ------
    ConfigError : deterministic on a GPU without captured steps
    """
    if device.type == "cpu":
        return [Backend("cpu", Batch)]
    if settings.deterministic:
        if not settings.cuda_graphs:
            raise ConfigError("MASC_DETERMINISTIC: needs MASC_CUDA_GRAPHS on a GPU")
        enable_determinism()
        return [Backend("graphs", partial(GraphBatch, deterministic=True))]
    no_kernels = Backend("eager", partial(Batch, kernels=False))  # works where Triton does not
    if not settings.cuda_graphs:
        return [Backend("eager", Batch), no_kernels]
    return [
        Backend("graphs", GraphBatch),
        Backend("compiled", partial(GraphBatch, captured=False)),
        no_kernels,
    ]


class LoopThread(threading.Thread):
    """Runs a worker's loop; ``failure`` is what ended it, if not `WorkerLoop.stop`.

    A daemon, because a step that hangs must not keep the process alive: the process decides how
    long to wait for the loop.
    """

    def __init__(self, loop: WorkerLoop) -> None:
        super().__init__(name="worker", daemon=True)
        self._loop = loop
        self.failure: Exception | None = None

    def run(self) -> None:
        """Run the loop to its end."""
        try:
            self._loop.run()
        except Exception as error:
            logger.exception("the worker has stopped")
            self.failure = error


def run_until_signal(loop: WorkerLoop) -> None:
    """Run the loop until a signal, in the main thread.

    Raises
    ------
    EngineError : a step hangs, so that the loop has not ended in time
    Exception : what ended the loop
    """
    thread, received = LoopThread(loop), list[int]()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)  # before anything that the next signal must not find half done
        if len(received) > 1:
            os._exit(128 + number)
        loop.stop()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if loop.is_overdue:
            raise EngineError("a step hangs: the worker ends without it")
    if thread.failure is not None:
        raise thread.failure


@contextmanager
def serve_metrics(
    loop: WorkerLoop, registry: CollectorRegistry, host: str, port: int
) -> Iterator[int]:
    """Serve the metrics of a process that has no front end, and give the port; 0 takes a free one.

    Raises
    ------
    ConfigError : the address cannot be bound
    """
    ready = Gauge("masc_ready", "Whether this worker is ready.", registry=registry)
    ready.set_function(lambda: float(any(status.ready for status in loop.statuses)))
    draining = Gauge("masc_draining", "Whether this worker takes no more jobs.", registry=registry)
    draining.set_function(lambda: float(loop.is_stopping))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"MASC_METRICS_PORT: {host}:{port} cannot be bound: {error}") from error
    try:
        logger.info("metrics on http://%s:%d/metrics", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
