"""Settings of a worker, read once from the environment.

Every variable starts with ``MASC_``; an option of the command line, passed as a keyword, wins over
its variable. An empty variable counts as absent. Variables of other processes are left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from masc_core.errors import ConfigError

PREFIX = "MASC_"


class WorkerSettings(BaseSettings):
    """What a worker can be told.

    Attributes
    ----------
    queue_url : ``memory://``
    models_dir : folder of the model bundles
    model : the model to serve; needed when there are several
    device : ``cuda`` (with a number for one of several), ``cpu``, or ``auto``: CUDA if there is any
    dtype : precision of the transformer; ``auto`` is bfloat16 on CUDA and float32 elsewhere
    max_batch : rows of the transformer's batch; a guided image takes two
    log_format : ``text`` or ``json``
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
    )

    queue_url: str = "memory://"
    models_dir: Path = Path("models")
    model: str = ""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_batch: Annotated[int, Field(ge=2, le=4096)] = 32
    log_format: Literal["text", "json"] = "text"


def load_settings(**options: Any) -> WorkerSettings:  # noqa: ANN401 - checked by the model
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return WorkerSettings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        value = repr(first["input"])[:80]
        raise ConfigError(f"{name}: {first['msg']}, got {value}") from error
