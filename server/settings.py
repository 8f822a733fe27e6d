"""Settings of the front end; see `masc_core.settings` for how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from masc_core.settings import ModelsDir, Seconds, read_settings
from worker.jobs.log import LogFormat
from worker.jobs.settings import QueueSettings

HOST_NAME = re.compile(r"\*|(\*\.)?\w[\w.-]*|\[?[\da-f.]*:[\da-f.]*:[\da-f:.]*\]?", re.ASCII)
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s,?#@*]+", re.ASCII)
ROOT_PATH = re.compile(r"(/[a-z0-9_~][a-z0-9._~-]*)*/?", re.ASCII | re.IGNORECASE)


def _host_name(name: str) -> str:
    if not HOST_NAME.fullmatch(name):
        raise ValueError("a name has neither scheme nor port nor letters beyond ASCII")
    return name.strip("[]")


def _origin(origin: str) -> str:
    """An origin as browsers send it."""
    if not ORIGIN.fullmatch(origin):
        raise ValueError("an origin is like https://app.example, without a path")
    usual = {"http": ":80", "https": ":443"}.get(origin.partition(":")[0], "")
    return origin.removesuffix(usual)


def _path(path: str) -> str:
    if not ROOT_PATH.fullmatch(path):
        raise ValueError("a path is like /masc, of letters, digits and . _ ~ -")
    return path.rstrip("/")


def _each(check: Callable[[str], str], listed: str) -> str:
    """A list with commas, in lower case, of what passes the check."""
    return ",".join(check(item.strip().lower()) for item in listed.split(",") if item.strip())


class ServerSettings(QueueSettings):
    """Settings of a front end, besides those of the queue.

    Attributes
    ----------
    host, port : where it listens; port 0 takes a free one
    published_host : the address at which others reach it, behind a container or a proxy; decides
        whether missing keys are warned of
    allowed_hosts : names under which it may be called, with commas between; see
        `server.middleware.hosts`
    root_path : below which a proxy shows the service to its clients, such as ``/masc``
    cors_origins : origins whose pages may use it, with commas between, or ``*``
    models_dir : folder of the model bundles, or its address in object storage
    default_model : the model of requests that name none; required if there are several
    max_connections : of clients at once; at most what the limit of open files leaves
    head_timeout : seconds for the head of a request to arrive
    keep_alive_timeout : seconds that a connection is kept between two requests
    max_body_bytes : largest body of a request
    body_timeout : seconds for the body of a request to arrive
    request_timeout : seconds until a waiting request times out
    job_timeout : seconds until a job of ``POST /jobs`` expires
    drain_seconds : for the accepted work after SIGTERM
    api_keys_file : keys of clients; without it everyone is a client
    admin_keys_file : keys of admins; without it admin routes are closed
    rate_limit : requests a minute that start work, for a key without a limit of its own; without
        keys, for everyone together; 0 is no limit
    queue_share : share of the queue for the waiting jobs of a key without a share of its own
    log_format : ``text`` or ``json``
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    published_host: str = ""
    allowed_hosts: Annotated[str, AfterValidator(partial(_each, _host_name))] = ""
    root_path: Annotated[str, AfterValidator(_path)] = ""
    cors_origins: Annotated[str, AfterValidator(partial(_each, _origin))] = ""
    models_dir: ModelsDir = Path("models")
    default_model: str | None = None
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    head_timeout: Seconds = 10.0
    keep_alive_timeout: Seconds = 75.0
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
    """Read the environment; an option that is None was not given. See `read_settings`."""
    return read_settings(ServerSettings, options)
