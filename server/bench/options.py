"""Options of one run of ``masc bench``; part of its JSON report.

The load is either open (`rate`) or closed (`clients`). The API key is not an option, because the
report must not hold it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from masc_core.bundle.manifest import CfgScale, Share, Temperature, TopK, TopP
from masc_core.errors import ConfigError
from masc_core.images import ImageFormat
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.params import Decoding

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DURATION = 10.0

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]


class BenchOptions(BaseModel):
    """Options of one run, as ``masc bench --help`` explains them.

    A run ends after `duration` or `requests`, whichever comes first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = DEFAULT_URL
    rate: Positive | None = None
    clients: Annotated[int, Field(ge=1, le=100_000)] | None = None
    duration: Positive | None = None
    requests: Count | None = None
    warm_up: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    class_name: str | None = None
    cfg_scale: CfgScale | None = None
    cfg_schedule: CFGSchedule | None = None
    cfg_start: Share | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    cluster_top_k: TopK | None = None
    cluster_top_p: TopP | None = None
    decoding: Decoding | None = None
    code_temperature: Temperature | None = None
    code_top_k: TopK | None = None
    code_cfg_scale: CfgScale | None = None
    num_images: Annotated[int, Field(ge=1, le=16)] = 1
    format: ImageFormat = "png"
    model: str | None = None
    priority: Literal["interactive", "batch"] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    timeout: Positive = 60.0

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not _is_host(parts.hostname or ""):
            raise ValueError("must be an address such as http://127.0.0.1:8000")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a password; a key belongs in MASC_API_KEY")
        if parts.query or parts.fragment:
            raise ValueError("must end before any ? or #")
        if parts.port == 0:
            raise ValueError("must not name port 0")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_loop(self) -> Self:
        if (self.rate is None) == (self.clients is None):
            raise ValueError("give exactly one of --rate (open loop) and --clients (closed loop)")
        return self


def read_options(**given: Any) -> BenchOptions:  # noqa: ANN401 - checked by the model
    """Check options; one that is None was not given. Without an end a run lasts 10 seconds.

    Raises
    ------
    ConfigError : an option that cannot be used; one line that names it, never its value
    """
    options = {name: value for name, value in given.items() if value is not None}
    if not {"duration", "requests"} & set(options):
        options["duration"] = DEFAULT_DURATION
    try:
        return BenchOptions(**options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(": ".join([*map(_flag, first["loc"][:1]), message])) from error


def _is_host(name: str) -> bool:
    try:
        return bool(name.encode("idna"))  # as resolving the name will
    except UnicodeError:
        return False


def _flag(name: int | str) -> str:
    if name == "url":
        return "URL"
    return f"--{name}".removesuffix("_name").replace("_", "-")
