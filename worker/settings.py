"""Settings of a worker; see `masc_core.settings` for how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from masc_core.bundle.registry import Registry
from masc_core.settings import ModelsDir, Seconds, read_settings
from worker.jobs.log import LogFormat
from worker.jobs.settings import QueueSettings

ALL: Final = "all"  # of `served_models`


class WorkerSettings(QueueSettings):
    """Settings of a worker, besides the queue's.

    Attributes
    ----------
    models_dir : folder of the model bundles, or its address in object storage
    default_model : the model to serve where `served_models` names none; needed when there are
        several
    served_models : the models to serve, with commas between, or ``all`` that have an active version
    max_model_bytes : memory that the models of a worker may take together; by default what is free
        when they are loaded
    device : ``cuda`` (with a number for one of several), ``cpu``, or ``auto``: CUDA if there is any
    dtype : precision of the transformer; ``auto`` is bfloat16 where the device computes in it
    max_batch : rows of the transformer's batch; a guided image takes two
    cuda_graphs : on CUDA, capture whole steps and replay them; off, for looking for errors
    deterministic : on CUDA, let every step have one shape, so that an image has the same bits
        whatever else is in the batch; small batches then take as long as full ones
    threads : of the CPU that the transformer and the decoder use; by default what proves
        fastest at the start
    image_metadata : whether the files of images say what they were made with
    stall_seconds : without the end of a step, after which the worker is not ready, and its jobs
        go to others
    drain_seconds : for the images that have begun when it is told to stop
    metrics_host, metrics_port : where a process without a front end serves its metrics; port 0
        takes a free one
    log_format : ``text`` or ``json``
    """

    models_dir: ModelsDir = Path("models")
    default_model: str = ""
    served_models: str = ""
    max_model_bytes: Annotated[int, Field(ge=1)] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_batch: Annotated[int, Field(ge=2, le=4096)] = 32
    cuda_graphs: bool = True
    deterministic: bool = False
    threads: Annotated[int, Field(ge=1)] | None = None
    image_metadata: bool = True
    stall_seconds: Seconds = 30.0
    drain_seconds: Seconds = 25.0
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    log_format: LogFormat = "text"


def models_to_serve(settings: WorkerSettings, registry: Registry) -> tuple[str, ...]:
    """Names of the models that a worker with these settings serves, at least one.

    Raises
    ------
    ConfigError : no such model, or several and none is named
    ArtifactError : there is no model
    """
    if settings.served_models == ALL:
        return registry.models()
    listed = (name.strip() for name in settings.served_models.split(","))
    named = dict.fromkeys(name for name in listed if name) or [settings.default_model]
    return tuple(registry.default(name) for name in named)


def load_settings(**options: Any) -> WorkerSettings:  # noqa: ANN401 - checked by the model
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    return read_settings(WorkerSettings, options)
