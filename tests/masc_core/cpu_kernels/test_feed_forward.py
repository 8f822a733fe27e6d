from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.cpu_kernels.feed_forward import add_rms_norm, swiglu
from masc_core.models.gpt import rms_norm

# Twice the distance of two neighbouring numbers of the type, relative to them.
ULP = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7}
DTYPES = pytest.mark.parametrize("dtype", list(ULP))


def assert_nearly_equal(actual: Tensor, expected: Tensor) -> None:
    """Equal but for a last digit here and there."""
    torch.testing.assert_close(actual, expected, rtol=ULP[actual.dtype], atol=1e-7)
    if actual.dtype == torch.bfloat16:
        assert (actual != expected).float().mean() < 1e-2


@DTYPES
@pytest.mark.parametrize(("rows", "width"), [(1, 4), (3, 100), (16, 768)])
def test_a_sum_and_its_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, branch = (30 * torch.randn(2, rows, width)).to(dtype)
    weight = torch.randn(width).to(dtype)
    total, normed = add_rms_norm(x, branch, weight, 1e-5)
    assert torch.equal(total, x + branch)
    assert_nearly_equal(normed, rms_norm(x + branch, weight, 1e-5))


def test_a_row_of_zeros_has_a_norm() -> None:
    zeros = torch.zeros(2, 8)
    assert torch.equal(add_rms_norm(zeros, zeros, torch.ones(8), 1e-5)[1], zeros)


@DTYPES
def test_swiglu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = torch.cat([torch.linspace(-80, 80, 4000)[None], torch.randn(1, 4000)], 1).to(dtype)
    gate, up = gate_up.chunk(2, -1)
    assert_nearly_equal(swiglu(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """Or else an image whose model is broken would be served."""
    x = torch.ones(2, 8)
    x[1, 3] = bad
    normed = add_rms_norm(x, torch.zeros_like(x), torch.ones(8), 1e-5)[1]
    assert normed[0].isfinite().all()
    assert not normed[1].isfinite().all()
    product = swiglu(x)
    assert product[0].isfinite().all()
    assert not product[1].isfinite().all()
