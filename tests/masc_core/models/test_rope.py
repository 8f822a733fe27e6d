from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masc_core.models.rope import apply_rope, rope_table
from tests.golden_files import assert_close, cos_sin_of, load_golden


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("grid_size", "head_dim"), [(4, 16), (16, 64)])
def test_table_is_upstreams(grid_size: int, head_dim: int) -> None:
    expected = load_golden("gpt/rope.safetensors")[f"table.grid{grid_size}.head{head_dim}.cls1"]
    assert_close(rope_table(grid_size, head_dim), cos_sin_of(expected), atol=1e-6, rtol=1e-6)


def test_rotation_is_upstreams() -> None:
    golden = load_golden("gpt/rope.safetensors")
    rotated = apply_rope(golden["apply.x"], rope_table(4, 16))
    assert_close(rotated, golden["apply.y"], atol=1e-5, rtol=1e-5)


def test_class_token_vanishes() -> None:
    x = random(2, 1, 3, 8)
    assert not apply_rope(x, rope_table(3, 8)[:1]).any()


def test_low_precision_is_rotated_in_float32() -> None:
    x, cos_sin = random(1, 10, 2, 8).bfloat16(), rope_table(3, 8)
    rotated = apply_rope(x, cos_sin)
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, apply_rope(x.float(), cos_sin).bfloat16())


def test_scores_depend_on_the_distance_of_cells() -> None:
    q, k = random(2, 8)
    cos_sin = rope_table(5, 8)

    def score(query_cell: tuple[int, int], key_cell: tuple[int, int]) -> float:
        rows = [1 + 5 * row + column for row, column in (query_cell, key_cell)]
        rotated = apply_rope(torch.stack([q, k])[:, None], cos_sin[rows])
        return float(rotated[0, 0] @ rotated[1, 0])

    assert score((3, 4), (1, 2)) == pytest.approx(score((2, 2), (0, 0)), abs=1e-5)
    assert score((3, 4), (1, 2)) != pytest.approx(score((3, 4), (2, 2)), abs=1e-5)
