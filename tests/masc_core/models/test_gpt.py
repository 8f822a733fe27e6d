from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.errors import ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.gpt import GPT, RMSNorm
from masc_core.models.gpt_config import GPT_SIZES, GPTConfig
from masc_core.models.kv_cache import KVCache
from tests.golden_files import assert_close, cos_sin_of, load_golden, load_golden_json
from tests.golden_gpt import GOLDEN_CONFIG, golden_gpt
from tests.masc_core.rows import rows_at, step_logits

LOGITS = {"atol": 2e-4, "rtol": 2e-4}
RELEASED = ("GPT-B", "GPT-L", "GPT-XL", "GPT-XXL", "GPT-3B")


def steps(model: GPT, labels: Tensor, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, 1 + T, K), one position at a time."""
    ids = torch.cat([labels[:, None], tokens], dim=1)
    with torch.inference_mode():
        logits = [step_logits(model, rows_at(p, ids[:, p]), cache) for p in range(ids.shape[1])]
    return torch.stack(logits, dim=1)


def test_logits_and_hidden_states_are_upstreams() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    hidden: list[Tensor] = []
    for block in model.layers:
        block.register_forward_hook(lambda *call: hidden.append(call[2]))
    with torch.no_grad():
        logits = model(io["labels"], io["tokens"][:, :-1])
        final = model.hidden(io["labels"], io["tokens"][:, :-1])
    assert_close(logits, io["logits"], **LOGITS)
    assert_close(hidden[0], io["hidden_after_layer_0"], **LOGITS)
    assert_close(hidden[1], io["hidden_after_layer_1"], **LOGITS)
    assert_close(final, io["hidden_final_norm"], **LOGITS)
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    assert_close(loss, io["loss_mean_ce"], atol=1e-5, rtol=1e-5)


def test_null_class_and_prefix_are_upstreams() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    null = torch.full((4,), GOLDEN_CONFIG.num_classes)
    with torch.no_grad():
        unconditional = model(null, io["tokens"][:, :-1])
        prefix = model(io["labels"], io["tokens"][:, :5])
        nothing = model(io["labels"], io["tokens"][:, :0])
    assert_close(unconditional, io["logits_null_class"], **LOGITS)
    assert_close(prefix, io["logits_prefix5"], **LOGITS)
    assert_close(nothing, io["logits"][:, :1], **LOGITS)


def test_gradients_are_upstreams() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    logits = model(io["labels"], io["tokens"][:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    parameters = dict(model.named_parameters())
    expected = {key[5:]: value for key, value in io.items() if key.startswith("grad.")}
    assert len(expected) == 7
    gradients = torch.autograd.grad(loss, [parameters[name] for name in expected])
    for gradient, value in zip(gradients, expected.values(), strict=True):
        assert_close(gradient, value, atol=2e-5, rtol=1e-3)


def test_rope_table_is_upstreams_in_every_precision() -> None:
    expected = load_golden("gpt/io.safetensors")["rope_table"]
    model = GPT(GOLDEN_CONFIG)
    assert_close(model.rope.table, cos_sin_of(expected), atol=1e-6, rtol=1e-6)
    exact = model.rope.table.clone()
    assert model.bfloat16().output.weight.dtype == torch.bfloat16
    assert torch.equal(model.rope.table, exact)
    assert torch.equal(model.double().rope.table, exact)


def test_norm_scales_in_the_low_precision() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(64, eps=1e-5).bfloat16(), torch.randn(8, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    wide = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    with torch.no_grad():
        assert torch.equal(norm(x), wide.bfloat16() * norm.weight)
        assert not torch.equal(norm(x), (wide * norm.weight).bfloat16())


def test_steps_equal_the_whole_sequence() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    cache = KVCache(GOLDEN_CONFIG, 4)
    for layer in range(GOLDEN_CONFIG.n_layer):  # no slot is read before it is written
        cache.layers[layer].keys.fill_(math.nan)
        cache.layers[layer].values.fill_(math.nan)
    logits = steps(model, io["labels"], io["tokens"][:, :-1], cache)
    assert_close(logits, io["logits"], **LOGITS)


def test_steps_in_bfloat16_stay_near() -> None:
    model, io = golden_gpt().bfloat16(), load_golden("gpt/io.safetensors")
    cache = KVCache(GOLDEN_CONFIG, 4, torch.bfloat16)
    logits = steps(model, io["labels"], io["tokens"][:, :-1], cache)
    assert logits.dtype == torch.float32
    assert (logits - io["logits"]).abs().mean() < 0.02 * io["logits"].abs().mean()


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float32, (1, 2, 3, 4, 12, 40, 44, 47)), (torch.bfloat16, (1, 2, 3, 5, 12, 17, 40, 47))],
)
def test_bits_of_a_row_do_not_depend_on_the_other_rows(
    num_threads: int, dtype: torch.dtype, sizes: tuple[int, ...]
) -> None:
    config = GPTConfig(64, dim=768, n_layer=1, n_head=12, num_classes=9, block_size=4)
    torch.manual_seed(0)
    model = GPT(config).to(dtype).eval()
    torch.nn.init.normal_(model.output.weight)
    labels, tokens = torch.randint(9, (48,)), torch.randint(64, (48, 3))
    torch.set_num_threads(num_threads)
    model.pack()
    together = steps(model, labels, tokens, KVCache(config, 48))
    for num_rows in sizes:
        rows = torch.randperm(48)[:num_rows]
        alone = steps(model, labels[rows], tokens[rows], KVCache(config, num_rows))
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("name", RELEASED)
def test_full_sizes_have_upstreams_keys(name: str) -> None:
    with without_memory():
        model = GPT(GPTConfig.named(name))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == load_golden_json(f"shapes/llamagen_{name}_c2i_v16384.json")
    assert model.config.num_parameters == load_golden_json("shapes/param_counts.json")[name]
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters


def test_named_sizes() -> None:
    widths = {name: GPTConfig.named(name).ffn_dim for name in GPT_SIZES}
    assert widths == {
        "GPT-B": 2048,
        "GPT-L": 2816,
        "GPT-XL": 3584,
        "GPT-XXL": 4096,
        "GPT-XXXL": 6912,
        "GPT-3B": 8704,
    }
    with pytest.raises(ConfigError, match=r"no transformer size 'GPT-M'; there are GPT-B, "):
        GPTConfig.named("GPT-M")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"dim": -64}, "dim"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_head": 0}, "n_head"),
        ({"n_head": 3}, "n_head"),  # 64 is no multiple of 3
        ({"n_head": 32}, "n_head"),  # heads of 2 channels
        ({"num_classes": 0}, "num_classes"),
        ({"block_size": 15}, "block_size"),
        ({"class_dropout": 1.0}, "class_dropout"),
        ({"token_dropout": -0.1}, "token_dropout"),
        ({"ffn_dropout": math.nan}, "ffn_dropout"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_base": math.nan}, "rope_base"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        replace(GOLDEN_CONFIG, **changes)


def test_starts_as_specified() -> None:
    torch.manual_seed(0)
    model = GPT(GOLDEN_CONFIG)
    for name, parameter in model.named_parameters():
        if name == "output.weight":
            assert not parameter.any()
        elif parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
            assert abs(parameter.mean().item()) < 0.002


def test_training_drops_labels_to_the_null_class() -> None:
    model = GPT(replace(GOLDEN_CONFIG, class_dropout=0.25))
    embedding, labels = model.cls_embedding, torch.full((4000,), 3)
    torch.manual_seed(0)
    rows = embedding(labels)
    null = (rows == embedding.embedding_table.weight[10]).all(1)
    kept = (rows == embedding.embedding_table.weight[3]).all(1)
    assert (null ^ kept).all()
    assert null.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(embedding.eval()(labels), rows[kept][:1].expand(4000, -1))


def test_without_label_dropping_there_is_no_null_class() -> None:
    config = replace(GOLDEN_CONFIG, class_dropout=0.0)
    model = GPT(config)
    assert model.cls_embedding.embedding_table.weight.shape == (10, 64)
    assert config.num_parameters == GOLDEN_CONFIG.num_parameters - 64
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


@pytest.mark.parametrize("field", ["token_dropout", "resid_dropout", "ffn_dropout"])
def test_each_dropout_acts_in_training_only(field: str) -> None:
    rates: dict[str, Any] = {"token_dropout": 0, "resid_dropout": 0, "ffn_dropout": 0, field: 0.5}
    model = GPT(replace(GOLDEN_CONFIG, **rates))
    model.load_state_dict(load_golden("gpt/weights.safetensors"))
    io = load_golden("gpt/io.safetensors")
    null = torch.full((4,), 10)  # label dropping does not change it
    with torch.no_grad():
        assert not torch.allclose(model(null, io["tokens"][:, :-1]), io["logits_null_class"])
        again = model.eval()(null, io["tokens"][:, :-1])
    assert_close(again, io["logits_null_class"], **LOGITS)


def test_gets_its_table_when_it_leaves_the_meta_device() -> None:
    with torch.device("meta"):
        model = GPT(GOLDEN_CONFIG)
    model.to_empty(device="cpu")
    model.load_state_dict(load_golden("gpt/weights.safetensors"))
    io = load_golden("gpt/io.safetensors")
    with torch.no_grad():
        assert_close(model.eval()(io["labels"], io["tokens"][:, :-1]), io["logits"], **LOGITS)


def test_training_under_autocast_keeps_float32_logits() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(io["labels"], io["tokens"][:, :-1])
    assert logits.dtype == torch.float32
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    assert loss.item() == pytest.approx(io["loss_mean_ce"].item(), rel=0.01)


def test_traces_without_graph_breaks() -> None:
    model, io = golden_gpt(), load_golden("gpt/io.safetensors")
    traced: Any = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        logits = traced(io["labels"], io["tokens"][:, :-1])
        model.train()
        traced(io["labels"], io["tokens"][:, :-1])
    assert_close(logits, io["logits"], **LOGITS)


def test_fused_weights_are_the_same_weights_under_the_same_names() -> None:
    model = golden_gpt()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows, x = rows_at(0, torch.tensor([0, 1])), torch.randn(2, GOLDEN_CONFIG.dim)
    with torch.inference_mode():
        expected = step_logits(model, rows, KVCache(GOLDEN_CONFIG, 2))
        for block in model.blocks:
            block.feed_forward.fuse()
            block.feed_forward.fuse()
        actual = step_logits(model, rows, KVCache(GOLDEN_CONFIG, 2))
        torch.testing.assert_close(actual, expected)
        feed_forward = model.blocks[0].feed_forward
        torch.testing.assert_close(feed_forward.step(x), feed_forward.eval()(x))
    assert list(model.state_dict()) == list(plain)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name])
    assert feed_forward.w13 is not None
    assert feed_forward.w1.weight.data_ptr() == feed_forward.w13.data_ptr()
