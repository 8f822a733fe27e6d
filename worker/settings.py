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
STALL_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 25.0


class WorkerSettings(QueueSettings):
    """Settings of a worker, besides those of the queue; docs/settings.md explains them."""

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
    stall_seconds: Seconds = STALL_SECONDS
    drain_seconds: Seconds = DRAIN_SECONDS
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
