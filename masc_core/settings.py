"""Settings of a process, read once from the environment.

Every variable starts with ``MASC_``; an option of the command line, passed as a keyword, wins over
its variable. An empty variable counts as absent. Variables of other processes are left alone.
"""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from masc_core.errors import ConfigError

logger = logging.getLogger(__name__)

PREFIX = "MASC_"
CREDENTIALS = re.compile(r"//.*@|(?<=://)[^?]*\?.*")  # in an address
OBJECT_STORAGE = ("s3", "gs", "az")  # schemes of addresses
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)


def expand_path(path: str | Path) -> Path:
    """A path with the home folder for a leading ``~``, which shells put in only at times.

    One of an unknown user stays as it is.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` refuses unknown users


def expand_paths(value: object) -> object:
    """A field's value with what `expand_path` makes of a path, or of those in a tuple."""
    if isinstance(value, Path):
        return expand_path(value)
    return tuple(map(expand_paths, value)) if type(value) is tuple else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Environment(EnvSettingsSource):
    """The environment without Kubernetes' service links.

    For a Service named ``masc`` every container of its namespace gets ``MASC_PORT=tcp://...``.
    """

    def __call__(self) -> dict[str, Any]:
        """Values by field."""
        values = super().__call__()
        for name in [name for name in values if name.endswith("port")]:
            if SERVICE_LINK.fullmatch(str(values[name])):
                _warn_of_service_link(PREFIX + name.upper(), values.pop(name))
        return values


@cache  # two settings of one process may have the variable
def _warn_of_service_link(variable: str, value: str) -> None:
    logger.warning("%s=%s is a Kubernetes service link, and ignored", variable, value)


class ProcessSettings(BaseSettings):
    """Base of the settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: object) -> object:
        return expand_paths(value)

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings'
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, Environment(settings_cls)


Settings = TypeVar("Settings", bound=ProcessSettings)


def parse_models_dir(value: str | Path) -> str | Path:
    """An address in object storage stays text, anything else is a path.

    Raises
    ------
    ValueError : no such address; the message holds no part of it that may be of a secret
    """
    if not isinstance(value, str):
        return value
    if "://" not in value:
        return Path(value)
    scheme, _, rest = value.partition("://")
    if scheme not in OBJECT_STORAGE:
        raise ValueError("is neither a folder nor s3://, gs:// or az:// with a bucket")
    if "@" in rest or "?" in rest:
        raise ValueError("an address holds no credentials: the environment does")
    rest = rest.rstrip("/")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._=-]+)*", rest) is None:
        raise ValueError("is not scheme://bucket/prefix of letters, digits, '.', '_', '=' and '-'")
    return f"{scheme}://{rest}"


# A folder, or the address of one in object storage.
ModelsDir = Annotated[str | Path, AfterValidator(parse_models_dir)]


class ModelSettings(ProcessSettings):
    """Which models: the folder, and the one to take where there are several."""

    models_dir: ModelsDir = Path("models")
    default_model: str = ""


class CacheSettings(ProcessSettings):
    """Where files of models from object storage are kept on this machine, and how much of them."""

    models_cache: Path = Path("~/.cache/masc/models")
    models_cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0


def models_dir(given: str | Path | None) -> str | Path:
    """Folder of the model bundles: the given one, or that of the environment."""
    return read_settings(ModelSettings, {"models_dir": given}).models_dir


def read_settings(kind: type[Settings], options: dict[str, Any]) -> Settings:
    """Read the environment; an option that is None was not given.

    Raises
    ------
    ConfigError : a value that cannot be used; one line that names its variable
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        value = CREDENTIALS.sub("//***", repr(first["input"]))[:80]
        raise ConfigError(f"{name}: {first['msg']}, got {value}") from error
