"""Settings of the front end; see `masc_core.settings` for how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from masc_core.settings import Seconds, read_settings
from worker.jobs.log import LogFormat
from worker.jobs.settings import QueueSettings


class ServerSettings(QueueSettings):
    """What a front end can be told, besides the queue.

    Attributes
    ----------
    host, port : where it listens; port 0 takes a free one
    published_host : the address at which others reach it, where a container or a proxy stands
        between; whether keys are wanting is judged by it
    models_dir : folder of the model bundles
    default_model : the model of a request that names none; needed when there are several
    max_body_bytes : largest body of a request
    body_timeout : seconds in which the body of a request has to be there
    request_timeout : seconds after which a request that waits is given up
    job_timeout : seconds after which a job is given up that nobody waits for
    drain_seconds : for what has been accepted when it is told to stop
    api_keys_file : keys of those who may use the service; without it everyone may
    admin_keys_file : keys of those who may manage it; without it nobody may
    rate_limit : requests a minute that start work, of a key that has no limit of its own; without
        keys, of everyone together; 0 is no limit
    queue_share : share of the queue for the waiting jobs of a key that has no share of its own
    log_format : ``text`` or ``json``
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    published_host: str = ""
    models_dir: Path = Path("models")
    default_model: str | None = None
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    body_timeout: Seconds = 20.0
    request_timeout: Seconds = 300.0
    job_timeout: Seconds = 3600.0
    drain_seconds: Seconds = 25.0
    api_keys_file: Path | None = None
    admin_keys_file: Path | None = None
    rate_limit: Annotated[int, Field(ge=0)] = 0
    queue_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    log_format: LogFormat = "text"


def load_settings(**options: Any) -> ServerSettings:  # noqa: ANN401 - checked by the model
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    return read_settings(ServerSettings, options)
