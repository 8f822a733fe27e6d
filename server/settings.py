"""Settings of the front end; see `masc_core.settings` for how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from masc_core.log import LogFormat
from masc_core.settings import ProcessSettings, read_settings

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServerSettings(ProcessSettings):
    """What a front end can be told.

    Attributes
    ----------
    host, port : where it listens; port 0 takes a free one
    queue_url : ``memory://``
    models_dir : folder of the model bundles
    default_model : the model of a request that names none; needed when there are several
    max_queue : jobs that may wait
    max_body_bytes : largest body of a request
    body_timeout : seconds in which the body of a request has to be there
    request_timeout : seconds after which a request that waits is given up
    log_format : ``text`` or ``json``
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    queue_url: str = "memory://"
    models_dir: Path = Path("models")
    default_model: str | None = None
    max_queue: Annotated[int, Field(ge=1)] = 256
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    body_timeout: Seconds = 20.0
    request_timeout: Seconds = 300.0
    log_format: LogFormat = "text"


def load_settings(**options: Any) -> ServerSettings:  # noqa: ANN401 - checked by the model
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    return read_settings(ServerSettings, options)
