"""Sizes read off the keys and shapes of the full-size models, without memory for their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPT_SIZES, GPTConfig
from masc_core.models.vq import VQ_SIZES
from tests.golden_files import load_golden_json
from tests.golden_gpt import GOLDEN_CONFIG
from tests.training.pretrained.checkpoints import TINY_VQ, gpt_tensors, vq_tensors
from training.pretrained.checkpoint_file import CheckpointFile
from training.pretrained.models import (
    gpt_of,
    read_gpt_config,
    read_image_size,
    read_vq_config,
    size_name,
    tokenizer_of,
)


def checkpoint(tensors: Mapping[str, Tensor], **changes: object) -> CheckpointFile:
    return replace(CheckpointFile(Path("c.pt"), tensors), **changes)  # type: ignore[arg-type]


def of_shapes(shapes: Mapping[str, list[int]]) -> CheckpointFile:
    return checkpoint({k: torch.empty(v, device="meta") for k, v in shapes.items()})


@pytest.mark.parametrize("name", ["GPT-B", "GPT-L", "GPT-XL", "GPT-XXL", "GPT-3B"])
@pytest.mark.parametrize("block_size", [256, 576])
def test_released_transformers_are_recognised(name: str, block_size: int) -> None:
    released = of_shapes(load_golden_json(f"shapes/llamagen_{name}_c2i_v16384.json"))
    config = read_gpt_config(released, block_size=block_size)
    assert config == GPTConfig.named(name, block_size=block_size)
    assert size_name(config) == name
    assert config.num_parameters == load_golden_json("shapes/param_counts.json")[name]
    filled = gpt_of(released, config).state_dict()
    assert all(filled[k].shape == v.shape for k, v in released.tensors.items())


@pytest.mark.parametrize("name", GPT_SIZES)
def test_every_size_is_recognised(name: str) -> None:
    with torch.device("meta"):
        tensors = GPT(GPTConfig.named(name, vocab_size=64)).state_dict()
    config = read_gpt_config(checkpoint(tensors), block_size=256)
    assert config == GPTConfig.named(name, vocab_size=64)


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
def test_released_tokenizers_are_recognised(name: str) -> None:
    released = of_shapes(load_golden_json(f"shapes/llamagen_{name}.json"))
    config = read_vq_config(released)
    assert config == VQ_SIZES[name]
    assert tokenizer_of(released, config).config == VQ_SIZES[name]


def test_tokenizers_of_other_sizes_are_recognised() -> None:
    tensors = vq_tensors()
    assert read_vq_config(checkpoint(tensors)) == TINY_VQ
    raw = checkpoint(tensors, arguments={"codebook_l2_norm": False})
    assert read_vq_config(raw) == replace(TINY_VQ, l2_norm=False)
    del tensors["quantize.codebook_used"]
    assert (
        tokenizer_of(checkpoint(tensors), TINY_VQ).quantize.get_buffer("codebook_used").sum() == 0
    )


def test_heads_are_taken_from_the_table_of_rotations_or_must_be_given() -> None:
    tensors = gpt_tensors()
    with pytest.raises(ConfigError, match=r"n_head: must be given: .*2 layers of 64 channels"):
        read_gpt_config(checkpoint(tensors), block_size=16)
    assert read_gpt_config(checkpoint(tensors), block_size=16, n_head=4) == GOLDEN_CONFIG
    told = checkpoint(tensors, rope_shape=(17, 8, 2))
    assert read_gpt_config(told, block_size=16) == GOLDEN_CONFIG
    with pytest.raises(ConfigError, match="has 4 heads, not 2"):
        read_gpt_config(told, block_size=16, n_head=2)
    with pytest.raises(ArtifactError, match="16 positions an image, not 25"):
        read_gpt_config(told, block_size=25)
    for shape in ((17,), (17, 0, 2), (17, 7, 2)):
        with pytest.raises(ArtifactError, match="table of rotations of a wrong shape"):
            read_gpt_config(checkpoint(tensors, rope_shape=shape), block_size=16)


def test_the_image_size_is_told_given_or_asked_for() -> None:
    silent, by_argument = checkpoint({}), checkpoint({}, arguments={"image_size": 384})
    by_table = checkpoint({}, rope_shape=(577, 32, 2))
    assert read_image_size(silent, 256, 16) == 256
    assert read_image_size(by_argument, None, 16) == read_image_size(by_table, 384, 16) == 384
    with pytest.raises(ConfigError, match=r"image_size: .* does not tell it"):
        read_image_size(silent, None, 16)
    for one in (by_argument, by_table):
        with pytest.raises(ConfigError, match="was trained on 384 pixels, not 256"):
            read_image_size(one, 256, 16)
    with pytest.raises(ConfigError, match="must be a multiple of 16"):
        read_image_size(silent, 250, 16)


def test_other_transformers_are_refused() -> None:
    tensors = gpt_tensors()
    text = dict(tensors)
    text["cls_embedding.cap_proj.fc1.weight"] = text.pop("cls_embedding.embedding_table.weight")
    with pytest.raises(ArtifactError, match="conditioned on text"):
        read_gpt_config(checkpoint(text), block_size=16, n_head=4)
    unguided = checkpoint(tensors, arguments={"num_classes": 11})
    with pytest.raises(ArtifactError, match="has no null class"):
        read_gpt_config(unguided, block_size=16, n_head=4)
    with pytest.raises(ArtifactError, match=r"holds no tok_embeddings\.weight"):
        read_gpt_config(checkpoint(vq_tensors()), block_size=16, n_head=4)
    with pytest.raises(ArtifactError, match=r"holds no quantize\.embedding\.weight"):
        read_vq_config(checkpoint(tensors))


def test_wrong_shapes_are_named() -> None:
    wrong = {
        "lacks": ("the tensor norm.weight is not in it", "norm.weight", None),
        "shape": ("norm.weight has the shape (3,), not (64,)", "norm.weight", torch.zeros(3)),
        "more": ("the tensor other belongs to no part", "other", torch.zeros(3)),
    }
    for complaint, name, tensor in wrong.values():
        tensors = gpt_tensors()
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        with pytest.raises(ArtifactError) as caught:
            gpt_of(checkpoint(tensors), GOLDEN_CONFIG)
        assert complaint in str(caught.value)
