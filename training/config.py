"""Stage configurations: a TOML file, then flags, validated by one pydantic model a stage.

An unknown key, a wrong type or a value out of range is a `ConfigError` that names the key.
"""

from __future__ import annotations

import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
)

from masc_core.errors import ConfigError
from masc_core.io.bounded import decode_text, read_file
from masc_core.settings import expand_path, expand_paths

Precision = Literal["auto", "float32", "bfloat16"]
Config = TypeVar("Config", bound=BaseModel)
Value = TypeVar("Value")


class _MayChange:
    """Marks a key that may differ between a run and its continuation."""


# For keys that change where and how fast a run computes, not what.
MayChange = Annotated[Value, _MayChange()]


def is_address(source: str) -> bool:
    """Whether a source is not here, but has to be fetched."""
    return "://" in source


def without_secrets(source: str) -> str:
    """A source without the secrets of an address: user, password, query and fragment."""
    if not is_address(source) or source.startswith("hf://"):
        return source
    scheme, _, rest = re.split(r"[?#]", source, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


# Weights of others: a path, or an address that `local_file` of `training.downloads` fetches. What
# is written of a configuration is published with a model.
Source = Annotated[
    str,
    BeforeValidator(lambda one: str(one) if isinstance(one, Path) else one),
    PlainSerializer(without_secrets, when_used="json"),
]


class Frozen(BaseModel):
    """Keys that are known, and stay as they are."""

    # Help needs the fields alone: what validates them is built when there are values.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: object) -> object:
        return expand_paths(value)


class StageConfig(Frozen):
    """What every training stage has."""

    out: MayChange[Path] = Field(description="folder of the run")
    device: MayChange[str] = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: MayChange[int] = Field(
        0, ge=0, description="CPU threads; 0 leaves the choice to the libraries"
    )
    seed: int = Field(
        0, ge=0, lt=1 << 32, description="seed of the initial weights and the order of the data"
    )


class LoopConfig(StageConfig):
    """What every optimisation loop has."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1, description="items a step, over all ranks")
    micro_batch: MayChange[int] = Field(
        0,
        ge=0,
        description="items that go through a rank's model together; 0, and more than its share, "
        "is all of that",
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(
        0.1, gt=0, le=1, description="the cosine ends at this share of lr; 1 keeps it constant"
    )
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine",
        description="of lr after its warm-up: a cosine, or wsd, GigaTok's: constant, and in the "
        "last fifth of the steps down to 0",
    )
    warmup_steps: int = Field(0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    precision: Precision = Field(
        "float32", description="autocast precision; auto: bfloat16 where the device computes in it"
    )
    log_every: MayChange[int] = Field(50, ge=1, description="steps between log lines")
    checkpoint_every: MayChange[int] = Field(500, ge=1, description="steps between checkpoints")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="validate and keep averaged weights; 0 is off, 0.9999 usual"
    )
    tensorboard: MayChange[bool] = Field(
        default=False, description="write TensorBoard's files, too"
    )

    def micro_batch_of(self, world_size: int) -> int:
        """Items that go through the model together on each of so many ranks."""
        share = self.batch_size // world_size
        return min(self.micro_batch or share, share)


def _parse_colour(name: str) -> tuple[int, ...] | None:
    from PIL import ImageColor  # noqa: PLC0415 - help needs no Pillow

    if name == "none":
        return None
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ValueError(f"{name!r} is no colour, such as white or #808080, nor none") from error


class ImageOptions(Frozen):
    """How image files become pixels, for everything that reads some."""

    exif_orientation: bool = Field(
        default=True, description="turn photographs upright, as viewers do; else as they are stored"
    )
    background: str = Field(
        "white",
        validate_default=True,
        description="colour of what is transparent, such as white or #808080; none shows the "
        "colours that are hidden there",
    )

    @field_validator("background")
    @classmethod
    def _spell_one_way(cls, name: str) -> str:
        rgb = _parse_colour(name)
        return "none" if rgb is None else "#{:02x}{:02x}{:02x}".format(*rgb)

    @property
    def background_rgb(self) -> tuple[int, ...] | None:
        """Red, green and blue."""
        return _parse_colour(self.background)


DEFAULT_IMAGE_OPTIONS = ImageOptions()


def may_change(config: BaseModel) -> set[str]:
    """Keys that may differ between a run and its continuation."""
    return {
        key
        for key, field in type(config).model_fields.items()
        if any(isinstance(mark, _MayChange) for mark in field.metadata)
    }


def set_threads(threads: int) -> None:
    """Give torch, numba and BLAS that many CPU threads; 0 leaves the choice to them."""
    if not threads:
        return
    # Most stages need none of Numba's loops, and a command's help needs no torch.
    import numba  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    with suppress(ValueError):  # more than it has
        numba.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
    torch.set_num_threads(threads)  # after numba, which starts OpenMP with threads of its own


def load_config(config_class: type[Config], path: Path | None, flags: dict[str, Any]) -> Config:
    """Read a TOML file if there is one, let flags that are not None override it, and validate."""
    values: dict[str, Any] = {}
    if path is not None:
        path = expand_path(path)
        try:
            values = tomllib.loads(decode_text(read_file(path)))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is not TOML ({error})") from error
    values |= {key: value for key, value in flags.items() if value is not None}
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        problems = "; ".join(_describe(e["loc"], e["msg"]) for e in error.errors())
        raise ConfigError(f"{where}{problems}") from error


def _describe(location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, location)) or "configuration"
    return f"{where}: {message.removeprefix('Value error, ')}"
