from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from masc_core.errors import InvalidFieldError, NonFiniteError
from masc_core.generation.generate import Generated, generate
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KVCache, Rows
from masc_core.prior import ClusterMap
from masc_core.sampling.cfg_schedule import CFG_SCHEDULES
from masc_core.sampling.in_cluster import DECODING_IDS, CodeSampler
from masc_core.sampling.params import SamplingParams
from masc_core.sampling.rng import code_bits, gumbel
from masc_core.sampling.sampler import (
    apply_cfg,
    apply_temperature,
    coarse_logits,
    draw,
    entropy_bits,
    filter_coarse,
    filter_logits,
)
from tests.golden_files import assert_close, load_golden
from tests.golden_gpt import GOLDEN_CONFIG, golden_gpt
from tests.masc_core.rows import rows_at, step_logits

NULL = GOLDEN_CONFIG.num_classes
# name: cfg scale, last decode step that is guided (upstream's cfg_interval)
RUNS = {
    "greedy_cfg1": (1.0, math.inf),
    "greedy_cfg2": (2.0, math.inf),
    "greedy_cfg2_int3": (2.0, 3),
    "greedy_cfg3_int0": (3.0, 0),
    "sampled_cfg1p5_T0p9_k20_p0p9": (1.5, math.inf),
}
SAMPLED = "sampled_cfg1p5_T0p9_k20_p0p9"


def flat_decoder(vocab_size: int = GOLDEN_CONFIG.vocab_size) -> CodeSampler:
    return CodeSampler(ClusterMap.identity(vocab_size))


def paired_decoder(vocab_size: int) -> CodeSampler:
    """Clusters of a few codes each, some never counted, in larger ones of seven."""
    rng = np.random.default_rng(0)
    prior = ClusterMap.from_labels(rng.permutation(np.arange(3 * vocab_size) % vocab_size))
    partition = ClusterMap.from_labels(prior.labels // 7)
    return CodeSampler(prior, rng.integers(0, 4, 3 * vocab_size), coarse_partition=partition)


def random_gpt(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model


def mixed_params(num: int, num_classes: int) -> list[SamplingParams]:
    rng = random.Random(1)
    return [
        SamplingParams(
            class_id=rng.randrange(num_classes),
            cfg_scale=rng.choice([1.0, 1.0, 1.5, 4.0]),
            seed=rng.randrange(2**63),
            temperature=rng.choice([1.0, 0.8, 1.2]),
            top_k=rng.choice([0, 0, 40, 5]),
            top_p=rng.choice([1.0, 1.0, 0.9]),
            decoding=rng.choice(["uniform", "frequency"]),
            cfg_schedule=CFG_SCHEDULES[i % len(CFG_SCHEDULES)],
            cfg_start=i % 3 / 2,
            cluster_top_k=rng.choice([0, 0, 3]),
            cluster_top_p=rng.choice([1.0, 1.0, 0.6]),
        )
        for i in range(num)
    ]


def few_params() -> list[SamplingParams]:
    return [SamplingParams(i, 1.0 + i, seed=i, top_p=0.9) for i in range(3)]


def assert_same_bits(actual: Generated, expected: Generated, images: list[int]) -> None:
    assert torch.equal(actual.codes, expected.codes[images])
    assert torch.equal(actual.clusters, expected.clusters[images])
    assert torch.equal(actual.entropies, expected.entropies[images])
    assert torch.equal(actual.cluster_entropies, expected.cluster_entropies[images])


def upstream_run(name: str, labels: Tensor, forced: Tensor | None) -> tuple[Tensor, Tensor]:
    """Guided logits (B, L, K) and greedy tokens (B, L), or the forced ones, as upstream's loop."""
    model, (scale, last_guided) = golden_gpt(), RUNS[name]
    ids = torch.cat([labels, torch.full_like(labels, NULL)])
    cache = KVCache(GOLDEN_CONFIG, len(ids))
    all_logits, all_tokens = [], []
    for position in range(GOLDEN_CONFIG.block_size):
        with torch.inference_mode():
            logits, uncond = step_logits(model, rows_at(position, ids), cache).chunk(2)
        if position - 1 <= last_guided:
            logits = apply_cfg(logits, uncond, torch.full((len(labels),), scale))
        tokens = logits.argmax(-1) if forced is None else forced[:, position]
        ids = torch.cat([tokens, tokens])
        all_logits.append(logits)
        all_tokens.append(tokens)
    return torch.stack(all_logits, 1), torch.stack(all_tokens, 1)


@pytest.mark.parametrize("name", RUNS)
def test_loop_over_steps_is_upstreams(name: str) -> None:
    golden = load_golden("gpt/generate.safetensors")
    labels = load_golden("gpt/io.safetensors")["labels"]
    indices = golden[f"{name}.indices"].long()
    logits, tokens = upstream_run(name, labels, indices if name == SAMPLED else None)
    assert torch.equal(tokens, indices)
    assert_close(logits, golden[f"{name}.step_logits"], atol=2e-4, rtol=2e-4)


def test_sampling_probabilities_are_upstreams() -> None:
    golden = load_golden("gpt/generate.safetensors")
    labels = load_golden("gpt/io.safetensors")["labels"]
    logits, _ = upstream_run(SAMPLED, labels, golden[f"{SAMPLED}.indices"].long())
    rows = apply_temperature(logits.flatten(0, 1), torch.full((64,), 0.9))
    filtered = filter_logits(rows, torch.full((64,), 20), torch.full((64,), 0.9))
    expected = golden[f"{SAMPLED}.step_probs"].flatten(0, 1)
    assert_close(filtered.softmax(-1), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["greedy_cfg1", "greedy_cfg2"])
def test_no_temperature_is_upstreams_greedy_run(name: str) -> None:
    golden = load_golden("gpt/generate.safetensors")
    labels = load_golden("gpt/io.safetensors")["labels"].tolist()
    params_list = [
        SamplingParams(label, RUNS[name][0], seed=i, temperature=0)
        for i, label in enumerate(labels)
    ]
    made = generate(golden_gpt(), flat_decoder(), params_list)
    assert torch.equal(made.codes, golden[f"{name}.indices"].long())
    assert torch.equal(made.clusters, made.codes)
    logits = golden[f"{name}.step_logits"]
    expected = entropy_bits(logits.flatten(0, 1)).view(4, 16)
    assert_close(made.entropies, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_gpu_is_upstreams_greedy_run() -> None:
    golden = load_golden("gpt/generate.safetensors")
    labels = load_golden("gpt/io.safetensors")["labels"].tolist()
    params_list = [SamplingParams(label, 2.0, seed=0, temperature=0) for label in labels]
    code_sampler = CodeSampler(ClusterMap.identity(GOLDEN_CONFIG.vocab_size), device="cuda")
    made = generate(golden_gpt().cuda(), code_sampler, params_list)
    assert torch.equal(made.codes.cpu(), golden["greedy_cfg2.indices"].long())


def test_is_the_slow_definition() -> None:
    """Each image alone, without a cache: the whole sequence anew at every position."""
    model, code_sampler = golden_gpt(), paired_decoder(96)
    partition = code_sampler.coarse_partition
    assert partition is not None
    params_list = mixed_params(6, NULL)
    made = generate(model, code_sampler, params_list)
    for i, params in enumerate(params_list):
        clusters = torch.zeros(1, 0, dtype=torch.int64)
        codes, entropies, cluster_entropies = [], [], []
        seed, decoding = torch.tensor([params.seed]), torch.tensor([DECODING_IDS[params.decoding]])
        for position in range(GOLDEN_CONFIG.block_size):
            with torch.inference_mode():
                cond = model(torch.tensor([params.class_id]), clusters)[:, -1]
                uncond = model(torch.tensor([NULL]), clusters)[:, -1]
            cfg_scale = params.cfg_scales(GOLDEN_CONFIG.block_size)[position]
            logits = apply_cfg(cond, uncond, torch.tensor([cfg_scale], dtype=torch.float32))
            entropies.append(entropy_bits(logits))
            cluster_entropies.append(entropy_bits(coarse_logits(logits, partition)))
            tempered = apply_temperature(logits, torch.tensor([params.temperature]))
            clusters_kept = filter_coarse(
                tempered,
                partition,
                torch.tensor([params.cluster_top_k]),
                torch.tensor([params.cluster_top_p]),
            )
            kept = filter_logits(
                clusters_kept, torch.tensor([params.top_k]), torch.tensor([params.top_p])
            )
            token = draw(kept, gumbel(seed, position, kept.shape[1]))
            codes.append(code_sampler.sample_code(token, code_bits(seed, position), decoding))
            clusters = torch.cat([clusters, token[:, None]], dim=1)
        assert torch.equal(made.clusters[i], clusters[0])
        assert torch.equal(made.codes[i], torch.cat(codes))
        assert_close(made.entropies[i], torch.cat(entropies), atol=1e-4, rtol=1e-4)
        expected = torch.cat(cluster_entropies)
        assert_close(made.cluster_entropies[i], expected, atol=1e-4, rtol=1e-4)


def test_an_image_has_the_same_bits_in_every_batch() -> None:
    model, code_sampler = golden_gpt(), paired_decoder(96)
    params_list = mixed_params(17, NULL)
    together = generate(model, code_sampler, params_list)
    rng = random.Random(2)
    for num_images in range(1, 18):
        images = rng.sample(range(17), num_images)
        assert_same_bits(
            generate(model, code_sampler, [params_list[i] for i in images]), together, images
        )


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_image_has_the_same_bits_at_a_realistic_size(num_threads: int) -> None:
    config = GPTConfig(1024, dim=256, n_layer=2, n_head=4, num_classes=50, block_size=64)
    model, code_sampler = random_gpt(config), paired_decoder(1024)
    params_list = mixed_params(7, 50)
    torch.set_num_threads(num_threads)
    together = generate(model, code_sampler, params_list)
    assert together.entropies.mean() > 1
    for images in ([4], [6, 0], [5, 2, 1, 3, 0]):
        assert_same_bits(
            generate(model, code_sampler, [params_list[i] for i in images]), together, images
        )


@pytest.mark.parametrize(
    ("width", "vocab_size"),
    [(768, 512), (16, 4)],  # wide products round otherwise for one row, small ones for a few
)
def test_an_image_without_guidance_has_the_same_bits_in_bfloat16(
    width: int, vocab_size: int
) -> None:
    config = GPTConfig(vocab_size, dim=width, n_layer=1, n_head=4, num_classes=9, block_size=16)
    model, code_sampler = random_gpt(config).bfloat16(), paired_decoder(vocab_size)
    params_list = [SamplingParams(i % 9, 1.0, seed=i) for i in range(40)]
    torch.set_num_threads(1)
    together = generate(model, code_sampler, params_list)
    for images in ([0], [9], [39, 3], list(range(17))):
        assert_same_bits(
            generate(model, code_sampler, [params_list[i] for i in images]), together, images
        )


def test_every_parameter_matters() -> None:
    base: dict[str, Any] = {"class_id": 1, "cfg_scale": 2.0, "seed": 5}
    changes: list[dict[str, Any]] = [
        {"class_id": 2},
        {"cfg_scale": 6.0},
        {"seed": 6},
        {"temperature": 3.0},
        {"top_k": 2},
        {"top_p": 0.2},
        {"decoding": "frequency"},
    ]
    params_list = [
        SamplingParams(**base),
        *(SamplingParams(**{**base, **change}) for change in changes),
    ]
    made = generate(golden_gpt(), paired_decoder(96), params_list)
    rows = {tuple(row) for row in made.codes.tolist()}
    assert len(rows) == len(params_list)
    assert torch.equal(made.clusters[-1], made.clusters[0])  # decoding does not feed back


def test_shapes() -> None:
    made = generate(golden_gpt(), paired_decoder(96), mixed_params(3, NULL))
    assert made.codes.shape == made.clusters.shape == made.entropies.shape == (3, 16)
    assert made.codes.dtype == made.clusters.dtype == torch.int64
    assert made.entropies.dtype == torch.float32
    assert ((made.codes >= 0) & (made.codes < 288)).all()
    assert np.array_equal(paired_decoder(96).prior.encode(made.codes.numpy()), made.clusters)
    assert made.entropies.max() <= math.log2(96)


class CountingGPT(GPT):
    """Notes how many rows each step has."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.rows: set[int] = set()

    def embed(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        self.rows.add(len(rows.ids))
        return super().embed(rows)


@pytest.mark.parametrize(
    ("scales", "num_rows"),
    [([1.0], 4), ([1.0] * 4, 4), ([1.0, 2.0, 1.0], 4), ([2.0] * 4, 8), ([2.0, 2.0, 1.0], 8)],
)
def test_only_guided_images_have_two_rows(scales: list[float], num_rows: int) -> None:
    model = CountingGPT(GOLDEN_CONFIG).eval()
    generate(model, flat_decoder(), [SamplingParams(0, scale, seed=0) for scale in scales])
    assert model.rows == {num_rows}


def test_an_image_of_one_position() -> None:
    config = GPTConfig(8, dim=16, n_layer=1, n_head=2, num_classes=2, block_size=1)
    made = generate(random_gpt(config), flat_decoder(8), [SamplingParams(1, 2.0, seed=0)])
    assert made.codes.shape == (1, 1)


def test_bfloat16() -> None:
    made = generate(golden_gpt().bfloat16(), flat_decoder(), few_params())
    assert made.entropies.dtype == torch.float32
    assert made.entropies.isfinite().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_images_with_non_finite_logits_are_named(poison: float) -> None:
    model, code_sampler = golden_gpt(), flat_decoder()
    params_list = [SamplingParams(class_id, 2.0, seed=class_id) for class_id in (3, 5, 7, 5)]
    expected = generate(model, code_sampler, params_list)
    with torch.no_grad():
        model.cls_embedding.embedding_table.weight[5] = poison
    with pytest.raises(NonFiniteError, match="image 1, 3 at position 0"):
        generate(model, code_sampler, params_list)
    assert_same_bits(
        generate(model, code_sampler, [params_list[0], params_list[2]]), expected, [0, 2]
    )


def test_without_a_null_class_images_are_made_without_guidance() -> None:
    model = random_gpt(GPTConfig(8, dim=16, n_layer=1, n_head=2, block_size=4, class_dropout=0))
    assert generate(model, flat_decoder(8), [SamplingParams(0, 1.0, seed=0)]).codes.shape == (1, 4)


def test_what_else_cannot_be_generated() -> None:
    params = SamplingParams(0, 1.0, seed=0)
    with pytest.raises(InvalidFieldError, match="decoding must be 'uniform'"):
        generate(
            golden_gpt(), flat_decoder(), [SamplingParams(0, 1.0, seed=0, decoding="frequency")]
        )
    with pytest.raises(ValueError, match="no images"):
        generate(golden_gpt(), flat_decoder(), [])
    with pytest.raises(ValueError, match="training mode"):
        generate(golden_gpt().train(), flat_decoder(), [params])
