"""Settings of the front end, read once from the environment.

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
LogFormat = Literal["text", "json"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServerSettings(BaseSettings):
    """What a front end can be told.

    Attributes
    ----------
    host, port : where it listens; port 0 takes a free one
    queue_url : ``memory://``
    models_dir : folder of the model bundles
    default_model : the model of a request that names none; needed when there are several
    max_queue : jobs that may wait
    max_body_bytes : largest body of a request
    request_timeout : seconds after which a request that waits is given up
    log_format : ``text`` or ``json``
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    queue_url: str = "memory://"
    models_dir: Path = Path("models")
    default_model: str | None = None
    max_queue: Annotated[int, Field(ge=1)] = 256
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    request_timeout: Seconds = 300.0
    log_format: LogFormat = "text"


def load_settings(**options: Any) -> ServerSettings:  # noqa: ANN401 - checked by the model
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        value = repr(first["input"])[:80]
        raise ConfigError(f"{name}: {first['msg']}, got {value}") from error
