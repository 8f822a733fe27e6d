"""What one image depends on besides the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from masc_core.errors import InvalidFieldError, UnknownClassError
from masc_core.models.gpt_config import GPTConfig
from masc_core.sampling.cfg_schedule import (
    CFG_SCHEDULES,
    DEFAULT_CFG_START,
    CFGSchedule,
    scheduled_scales,
)

Decoding = Literal["uniform", "frequency", "refine", "complete"]  # how a cluster becomes a code

CODE_SETTINGS = ("code_temperature", "code_top_k", "code_cfg_scale")  # of a completer


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """All that an image depends on besides the model.

    Temperature and filters concern clusters; see `masc_core.sampling.in_cluster` for codes. What
    begins with ``code_`` is how a completer draws those, and of no effect in other decodings.

    Raises
    ------
    InvalidFieldError : a value outside its range; `check_params` tells what a model cannot do
    """

    class_id: int  # of the model
    cfg_scale: float  # classifier-free guidance, at least 1; 1 is off and costs half as much
    seed: int  # in [0, 2^63)
    temperature: float = 1.0  # at least 0; at 0 the most probable token is taken
    top_k: int = 0  # keep the k most probable tokens; 0 is off
    top_p: float = 1.0  # keep the most probable tokens up to this probability, in (0, 1]; 1 is off
    decoding: str = "uniform"  # how a code is drawn from a cluster; see `DECODING_IDS`
    cfg_schedule: CFGSchedule = "constant"  # how cfg_scale goes over the positions
    cfg_start: float = DEFAULT_CFG_START  # share of the positions before guidance begins, in [0, 1]
    code_temperature: float = 1.0  # at least 0; at 0 the most probable code is taken
    code_top_k: int = 0  # keep the k most probable codes of a cluster; 0 is off
    code_cfg_scale: float = 1.0  # guidance of the codes, at least 1
    cluster_top_k: int = 0  # before those, keep the k most probable clusters of the partition
    cluster_top_p: float = 1.0  # and of these the most probable ones up to this probability

    def __post_init__(self) -> None:
        """Refuse values that no model can serve."""
        for name in ("cfg_scale", "code_cfg_scale"):
            _require(name, "1 or more", value := getattr(self, name), 1 <= value < math.inf)
        if self.cfg_schedule not in CFG_SCHEDULES:
            known = ", ".join(CFG_SCHEDULES)
            message = f"cfg_schedule must be one of {known}, not {self.cfg_schedule!r}"
            raise InvalidFieldError("cfg_schedule", message)
        _require("cfg_start", "in [0, 1]", self.cfg_start, 0 <= self.cfg_start <= 1)
        _require("seed", "in [0, 2^63)", self.seed, 0 <= self.seed < 2**63)
        for name in ("temperature", "code_temperature"):
            _require(name, "0 or more", value := getattr(self, name), 0 <= value < math.inf)
        for name in ("top_k", "code_top_k", "cluster_top_k"):
            _require(name, "0 or more", value := getattr(self, name), 0 <= value < 2**63)
        for name in ("top_p", "cluster_top_p"):
            _require(name, "in (0, 1]", value := getattr(self, name), 0 < value <= 1)

    @property
    def has_filters(self) -> bool:
        """Whether any filter is on."""
        return bool(self.top_k or self.top_p < 1 or self.cluster_top_k or self.cluster_top_p < 1)

    @property
    def batch_rows(self) -> int:
        """Rows of the transformer's batch that the image takes."""
        return rows_per_image(self.cfg_scale)

    def cfg_scales(self, num_positions: int) -> list[float]:
        """Guidance of each of the L positions; see `scheduled_scales`."""
        return scheduled_scales(self.cfg_scale, self.cfg_schedule, self.cfg_start, num_positions)


def check_code_settings(given: Collection[str], decoding: str) -> None:
    """Raise an `InvalidFieldError` where one is of a completer, and the decoding has none."""
    for name in CODE_SETTINGS:
        if name in given and decoding != "complete":
            raise InvalidFieldError(name, f"{name} is of the decoding complete, not {decoding}")


def image_seed(seed: int, index: int) -> int:
    """Seed of image ``index`` of several that begin with ``seed``, in [0, 2^63)."""
    return (seed + index) % 2**63


def rows_per_image(cfg_scale: float) -> int:
    """Rows of the transformer's batch that an image takes: two if it is guided."""
    return 1 if cfg_scale == 1 else 2


def check_params(params_list: Sequence[SamplingParams], config: GPTConfig) -> None:
    """Refuse images that a model of this configuration cannot make.

    Raises
    ------
    UnknownClassError, InvalidFieldError : an image asks for what the model does not have
    ValueError : no images
    """
    if not params_list:
        raise ValueError("no images to generate")
    for params in params_list:
        if not 0 <= params.class_id < config.num_classes:
            expected = f"in 0..{config.num_classes - 1}"
            raise UnknownClassError(
                "class_id", f"class_id must be {expected}, got {params.class_id}"
            )
        if params.cfg_scale != 1 and config.num_class_rows == config.num_classes:
            raise InvalidFieldError(
                "cfg_scale", "cfg_scale must be 1: the model was trained without a null class"
            )


def check_cluster_filters(top_k: int, top_p: float, *, has_partition: bool) -> None:
    """Raise an `InvalidFieldError` where clusters are to be filtered of a model without any."""
    for field, is_on in {"cluster_top_k": top_k > 0, "cluster_top_p": top_p < 1}.items():
        if is_on and not has_partition:
            raise InvalidFieldError(field, "the model has no partition whose clusters can be kept")


def _require(field: str, expected: str, value: float, holds: bool) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidFieldError(field, f"{field} must be {expected}, got {value}")
