"""A job: a request in which nothing is left open, who wants it until when, and its events."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from masc_core.images import ImageFormat
from masc_core.sampling.params import SamplingSettings, image_seed, rows_per_image
from worker.jobs.priority import Priority

MAX_SEED = 2**63 - 1
MAX_IMAGES = 16  # of one request
DEFAULT_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class GenerationRequest(SamplingSettings):
    """A fully resolved request for images of one class.

    Image ``i`` uses the seed ``(seed + i) mod 2**63``. ``version`` is that of the model against
    which names and defaults were resolved, empty if any will do. ``class_name`` is what that
    version calls the class, so that another version can tell whether it means the same by the id.
    """

    model: str
    class_id: int
    cfg_scale: float
    seed: int
    num_images: int = 1
    format: ImageFormat = "png"
    version: str = ""
    class_name: str = ""

    @property
    def batch_rows(self) -> int:
        """Rows of the transformer's batch that this request occupies."""
        return self.num_images * rows_per_image(self.cfg_scale)

    def image_seed(self, index: int) -> int:
        """Seed of image ``index``."""
        return image_seed(self.seed, index)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a second submission the same as the first."""

    key: str  # chosen by the client, unique among those of the job's owner
    fingerprint: str  # of all that was asked for; the same key with another one is a conflict


@dataclass(frozen=True, slots=True)
class Job:
    """A request in the queue."""

    request: GenerationRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    submitted_at: float = field(default_factory=time.time)  # since the epoch: processes compare it
    timeout: float = DEFAULT_TIMEOUT  # seconds from its acceptance to its deadline
    owner: str = ""  # name of the API key that it came with; empty where none is asked for
    keep: bool = False  # whether job and outcome are kept after the client disconnects
    previews: bool = False  # whether a client watches what is drawn so far
    idempotency: Idempotency | None = None  # None where every submission is a job of its own
    trace: str = ""  # ``traceparent`` of what it is a part of, empty where nothing is traced
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: the right to run it, for as long as the lease is renewed."""

    job: Job
    token: int  # grows with every delivery of the job; only reports of the latest one count
    seconds_left: float  # until the job's deadline, when it was claimed

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(frozen=True, slots=True)
class Started:
    """A worker runs the job with this version of the model; sent again after a lost worker."""

    version: str


@dataclass(frozen=True, slots=True)
class Progress:
    """So many rows of the grid are drawn, or latent tokens of a sequence, of ``num_rows``."""

    image: int  # which one of the job, from 0
    rows: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The upper rows of an unfinished image; of latent tokens all of it, coarsely."""

    image: int  # which one of the job, from 0
    rows: int  # that are shown, as in `Progress`
    num_rows: int
    format: ImageFormat
    data: bytes  # the file, as wide as the image and, of a grid, as high as the rows


Event = Started | Progress | Preview


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event and its number within the job, from 1: whoever was away asks for what it missed."""

    number: int
    event: Event
