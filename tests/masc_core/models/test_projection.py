from __future__ import annotations

import copy
import itertools

import pytest
import torch

from masc_core.models.projection import Projection

DTYPES = [torch.float32, torch.bfloat16]
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def projection(dim_in: int, dim_out: int, dtype: torch.dtype = torch.float32) -> Projection:
    torch.manual_seed(0)
    return Projection(dim_in, dim_out).to(dtype)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_the_product(dtype: torch.dtype) -> None:
    layer, x = projection(48, 20, dtype), torch.randn(5, 48).to(dtype)
    expected = (x.double() @ layer.weight.double().T).to(dtype)
    torch.testing.assert_close(layer.step(x), expected)
    layer.pack()
    torch.testing.assert_close(layer.step(x), expected)
    torch.testing.assert_close(layer(x), expected)


@torch.inference_mode()
@pytest.mark.skipif(not HAS_ONEDNN, reason="plain products keep a row's bits for some numbers only")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(4, 4), (16, 4), (40, 33), (688, 256), (768, 2304)])
def test_a_row_has_the_same_bits_among_any_rows(dims: tuple[int, int], dtype: torch.dtype) -> None:
    layer, x = projection(*dims, dtype), torch.randn(130, dims[0]).to(dtype)
    layer.pack()
    together = layer.step(x)
    for num_threads, num_rows in itertools.product((1, 2, 3), (2, 3, 4, 5, 8, 17, 33, 64, 129)):
        torch.set_num_threads(num_threads)
        assert torch.equal(layer.step(x[:num_rows]), together[:num_rows])
        assert torch.equal(layer.step(x[-num_rows:]), together[-num_rows:])


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [0, 1, 15, 16, 17, 31, 32, 33, 48, 49, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_the_portions_of_tiles_make_up_the_product(
    num_rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Projection(48, 20, bias=bias).bfloat16()
    x = torch.randn(num_rows, 48).bfloat16()
    expected = copy.deepcopy(layer).double()(x.double()).bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    layer.pack()
    torch.testing.assert_close(layer.step(x), expected)


@torch.inference_mode()
def test_packs_weights_as_they_are_then() -> None:
    layer, x = projection(8, 8), torch.randn(4, 8)
    layer.pack()
    before = layer.step(x)
    layer.weight.zero_()
    assert torch.equal(layer.step(x), before) == HAS_ONEDNN
    layer.pack()
    assert not layer.step(x).any()


@torch.inference_mode()
def test_what_becomes_of_it_reads_its_own_weights() -> None:
    layer, x = projection(8, 8), torch.randn(4, 8)
    layer.pack()
    other = copy.deepcopy(layer)
    other.weight.zero_()
    assert not other.step(x).any()
    assert layer.step(x).any()
    assert layer.bfloat16().step(x.bfloat16()).dtype == torch.bfloat16
    assert list(layer.state_dict()) == ["weight"]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_added_and_keeps_the_bits_of_a_row(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Projection(48, 20, bias=True).to(dtype)
    x = torch.randn(64, 48).to(dtype)
    layer.pack()
    together = layer.step(x)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(together, expected.to(dtype))
    for num_threads, num_rows in itertools.product((1, 3), (4, 8, 32)):
        torch.set_num_threads(num_threads)
        assert torch.equal(layer.step(x[:num_rows]), together[:num_rows])


@torch.inference_mode()
def test_packs_only_what_onednn_computes() -> None:
    layer = projection(8, 8, torch.float64)
    layer.pack()
    x = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(layer.step(x), x @ layer.weight.T)
