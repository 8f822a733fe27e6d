from __future__ import annotations

import math
from typing import Any

import pytest

from masc_core.errors import InvalidFieldError, UnknownClassError
from masc_core.models.gpt_config import GPTConfig
from masc_core.sampling.params import SamplingParams, check_params


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("cfg_scale", (0.99, math.inf, math.nan)),
        ("seed", (-1, 2**63)),
        ("temperature", (-0.1, math.inf, math.nan)),
        ("top_k", (-1, 2**63)),
        ("top_p", (0.0, 1.01, math.nan)),
    ],
)
def test_values_that_no_model_can_serve_are_refused(field: str, bad: tuple[float, ...]) -> None:
    for value in bad:
        given: dict[str, Any] = {"class_id": 0, "cfg_scale": 1.0, "seed": 0, field: value}
        with pytest.raises(InvalidFieldError, match=f"{field} must be ") as caught:
            SamplingParams(**given)
        assert caught.value.field == field


def test_the_ends_of_every_range_are_served() -> None:
    SamplingParams(0, 1.0, seed=0, temperature=0.0, top_k=0, top_p=1.0)
    SamplingParams(0, 1e9, seed=2**63 - 1, temperature=1e9, top_k=2**63 - 1, top_p=1e-9)


def test_guidance_takes_a_second_row() -> None:
    assert SamplingParams(0, 1.0, seed=0).batch_rows == 1
    assert SamplingParams(0, 1.0001, seed=0).batch_rows == 2


@pytest.mark.parametrize("class_id", [-1, 3])
def test_classes_are_those_of_the_model(class_id: int) -> None:
    config = GPTConfig(5, dim=16, n_layer=1, n_head=4, num_classes=3)
    check_params([SamplingParams(2, 2.0, seed=0)], config)
    with pytest.raises(UnknownClassError, match=r"class_id must be in 0\.\.2") as caught:
        check_params([SamplingParams(i, 1.0, seed=0) for i in (0, class_id)], config)
    assert caught.value.field == "class_id"


def test_guidance_needs_a_null_class() -> None:
    config = GPTConfig(5, dim=16, n_layer=1, n_head=4, num_classes=3, class_dropout=0.0)
    check_params([SamplingParams(2, 1.0, seed=0)], config)
    with pytest.raises(InvalidFieldError, match="without a null class") as caught:
        check_params([SamplingParams(2, 2.0, seed=0)], config)
    assert caught.value.field == "cfg_scale"


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        check_params([], GPTConfig(5, dim=16, n_layer=1, n_head=4))
