"""A front end under test: the real application, queue and registry, and a worker that draws discs.

Only the model is missing. The worker is a thread at the queue's other end, and its images are real
files whose pixels depend on the class and the seed alone.
"""

from __future__ import annotations

import asyncio
import colorsys
import dataclasses
import datetime as dt
import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image, ImageDraw
from prometheus_client import CollectorRegistry, generate_latest

from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    COUNTS_FILE,
    REFINER_FILE,
    REQUIRED_FILES,
    CompleterSection,
    Defaults,
    GPTSection,
    LatentSection,
    Manifest,
    RefinerSection,
    VQSection,
    partition_file,
    write_manifest,
)
from masc_core.bundle.registry import CURRENT_FILE, Registry
from masc_core.sampling.params import Decoding
from server.app import create_app
from server.settings import ServerSettings
from worker.jobs.job import GenerationRequest, Job, Lease, Preview, Progress, Started
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import ImageOutput, JobFailure, JobResult, Outcome, Timings
from worker.jobs.queue import JobConsumer, QueueLimits, WorkerStatus

CLASS_NAMES = ("goldfish", "Golden Retriever", "crane", "teapot", "crane", "ship")
GRID = 4
NUM_CLUSTERS = 16
WEIGHTS = "ab" * 32
LATENT = LatentSection(  # of a 1-D tokenizer with as many tokens as the grid has cells
    latent_shape=(1, GRID**2),
    encoder_width=8,
    encoder_layers=1,
    encoder_heads=1,
    decoder_width=8,
    decoder_layers=1,
    decoder_heads=1,
)
OF_CLUSTERS: dict[str, Any] = {  # of the images of a model with a partition
    "cluster_entropies": (1.5,) * GRID**2,
    "cluster_entropy_bits": 1.5,
    "cluster_entropy_ratio": 0.75,
}


def write_model(
    root: Path,
    name: str = "tiny",
    version: str = "v1",
    defaults: Defaults | None = None,
    decodings: Sequence[Decoding] = ("uniform", "frequency"),
    class_names: Sequence[str] = CLASS_NAMES,
    latent: LatentSection | None = None,
    partitions: Sequence[int] = (),
) -> Manifest:
    """Put a bundle without its weights under a registry's root, as the active version."""
    folder = root / name / version
    folder.mkdir(parents=True)
    files = [*REQUIRED_FILES, COUNTS_FILE, *map(partition_file, partitions)]
    if "refine" in decodings:
        files.append(REFINER_FILE)
    completer = None
    if "complete" in decodings:
        files.append(COMPLETER_FILE)
        sizes = {"dim": 8, "n_layer": 1, "n_head": 1}
        completer = CompleterSection(**sizes, softmax="member", input_rows="clusters")
    manifest = Manifest(
        name=name,
        version=version,
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        class_names=tuple(class_names),
        defaults=defaults or Defaults(cfg_scale=3.0),
        metrics={"psnr_db": 23.5},
        gpt=GPTSection(
            dim=8, n_layer=1, n_head=1, num_classes=len(class_names), block_size=GRID**2
        ),
        tokenizer="vq" if latent is None else "gigatok1d",
        latent=latent,
        vq=VQSection(code_dim=4, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=8),
        num_codes=32,
        num_clusters=NUM_CLUSTERS,
        grid=GRID,
        image_size=GRID * 4,
        decodings=tuple(decodings),
        refiner=RefinerSection(width=8, n_head=2, ffn_dim=16) if "refine" in decodings else None,
        completer=completer,
        files=dict.fromkeys(files, "0" * 64),
    )
    write_manifest(folder, manifest)
    (root / name / CURRENT_FILE).write_text(f"{version}\n")
    return manifest


def draw(class_id: int, seed: int, file_format: str) -> bytes:
    """A disc whose colour is the class and whose place is the seed."""
    image = Image.new("RGB", (16, 16), "white")
    red, green, blue = colorsys.hsv_to_rgb(class_id / len(CLASS_NAMES), 1.0, 0.8)
    x, y = seed % 9, seed // 9 % 9
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    ImageDraw.Draw(image).ellipse((x, y, x + 7, y + 7), fill=colour)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def paint(job: Job, version: str = "v1", *, has_partition: bool = False) -> JobResult:
    """Make every image that a job asks for."""
    request = job.request
    entropies = tuple(math.log2(2 + i) for i in range(GRID**2))
    bits = sum(entropies) / len(entropies)
    images = tuple(
        ImageOutput(
            data=draw(request.class_id, request.image_seed(i), request.format),
            seed=request.image_seed(i),
            entropies=entropies,
            entropy_bits=bits,
            entropy_ratio=bits / math.log2(NUM_CLUSTERS),
            **(OF_CLUSTERS if has_partition else {}),
        )
        for i in range(request.num_images)
    )
    timings = Timings(0.001, 0.002, 0.003, 0.004, 0.005, 0.015)
    if request.decoding == "complete":
        timings = dataclasses.replace(timings, complete=0.006, total=0.021)
    return JobResult(images, request.model, version, WEIGHTS, timings)


def top_of(data: bytes, rows: int) -> bytes:
    """The upper rows of the grid, cut out of a whole image."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).crop((0, 0, 16, 4 * rows)).save(file, "png")
    return file.getvalue()


class Painter(threading.Thread):
    """The worker. Holds its jobs back while ``gate`` is closed, fails them while told to.

    A job takes ``seconds``; one with previews is told of row by row, one image after the other, and
    each row waits for a permit of ``rows``, where that is given.
    """

    def __init__(self, queue: JobConsumer, models: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0
        self.rows: threading.Semaphore | None = None
        self.version = "v1"
        self.has_partition = False
        self.failure: JobFailure | None = None
        self.requests: list[GenerationRequest] = []
        self._queue, self._models = queue, models
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            for lease in self._claimed():
                if lease.job.previews:
                    self._queue.report([(lease, Started(self.version))])
                self.requests.append(lease.job.request)
                self.gate.wait()
                self._stopping.wait(self.seconds)
                outcome: Outcome = self.failure or paint(
                    lease.job, self.version, has_partition=self.has_partition
                )
                if lease.job.previews and isinstance(outcome, JobResult):
                    self._tell(lease, outcome)
                self._queue.report([(lease, outcome)])

    def _tell(self, lease: Lease, result: JobResult) -> None:
        for index, image in enumerate(result.images):
            for rows in range(1, GRID + 1):
                while (permits := self.rows) and not permits.acquire(timeout=0.05):
                    if self._stopping.is_set():
                        return
                self._queue.report([(lease, Progress(index, rows, GRID))])
                preview = Preview(index, rows, GRID, "png", top_of(image.data, rows))
                self._queue.report([(lease, preview)])

    def _claimed(self) -> Iterator[Lease]:
        for model in self._models:
            yield from self._queue.claim(model, 1, timeout=0.01 / len(self._models))

    def stop(self) -> None:
        self._stopping.set()
        self.gate.set()
        self.join()


class Service:
    """One front end with its queue, its models and its worker.

    Parameters
    ----------
    root : where its models are written
    working : whether a worker runs, and has announced itself
    clock : the queue's
    settings : what differs from the defaults
    """

    def __init__(
        self,
        root: Path,
        *,
        working: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        self.root = root / "models"
        if not self.root.exists():
            write_model(self.root)
        self.settings = ServerSettings(models_dir=self.root, **settings)
        self.queue = MemoryQueue(
            QueueLimits(self.settings.max_queue, result_seconds=self.settings.result_seconds), clock
        )
        self.registry = CollectorRegistry()
        self.app = create_app(self.settings, self.queue, Registry(self.root), self.registry)
        self.painter = Painter(self.queue, Registry(self.root).names())
        self.url = ""  # where it listens, if it does
        self._working = working

    def __enter__(self) -> Self:
        if self._working:
            self.painter.start()
            self.announce()
        return self

    def __exit__(self, *_: object) -> None:
        if self._working:
            self.painter.stop()

    def reset(self) -> None:
        """Have a worker that makes images again, whatever a test has told it."""
        self.painter.gate.set()
        self.painter.rows = self.painter.failure = None
        self.announce()

    def announce(
        self, *, ready: bool = True, model: str = "tiny", version: str = "v1", detail: str = ""
    ) -> None:
        """Say in the worker's name how it is."""
        self.queue.announce(WorkerStatus("painter", ready, model, version, detail))

    def client(self) -> httpx.AsyncClient:
        """A client of the application, without a socket between."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://masc")

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request."""

        async def run() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.call("GET", path, headers=headers)

    def submit(self, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Put a job for the first class into the queue, unless told otherwise."""
        return self.call("POST", "/jobs", json=_of_a_class(fields), headers=headers)

    def ended(self, location: str) -> dict[str, Any]:
        """What is told of a job once it has ended."""
        self.get(f"{location}/events")  # the answer ends with the job
        answer: dict[str, Any] = self.get(location).json()
        return answer

    def generate(
        self, body: Mapping[str, Any] | None = None, accept: str = "*/*", **fields: Any
    ) -> httpx.Response:
        """Ask for images, of the first class unless told otherwise."""
        given = _of_a_class(dict(body or {}) | fields)
        return self.call("POST", "/generate", json=given, headers={"Accept": accept})

    def post(
        self, content: bytes, content_type: str | bytes | None = "application/json"
    ) -> httpx.Response:
        """Send bytes to ``/generate`` as they are."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        return self.call("POST", "/generate", content=content, headers=headers)

    def sample(self, name: str, **labels: str) -> float:
        """Value of a metric; 0 where there is none yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def exposition(self) -> str:
        """All metrics as text, without the gauges being read anew."""
        return generate_latest(self.registry).decode()


def _of_a_class(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return fields if {"class_id", "class_name"} & set(fields) else {"class_id": 0, **fields}


def assert_problem(response: httpx.Response, status: int, *fields: str) -> dict[str, Any]:
    """Check that an answer is a well-formed problem document about these fields."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"]
    assert document["title"]
    assert document["detail"]
    assert [error["field"] for error in document.get("errors", [])] == list(fields)
    assert all(error["message"] for error in document.get("errors", []))
    return document


def assert_nothing_left(service: Service) -> None:
    service.painter.gate.set()
    assert service.generate().status_code == 200
    assert not service.queue._waiting
    assert not service.queue._running
