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
    """Settings of a front end, besides those of the queue; docs/settings.md explains them."""

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
