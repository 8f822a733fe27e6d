from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masc_core.errors import ArtifactError
from masc_core.models.gpt import GPT
from masc_core.models.weights import (
    load_refiner,
    load_tokenizer,
    load_transformer,
    read_inputs,
    save_model,
)
from tests.tiny_bundle import tiny_parts, tiny_refiner


def test_models_come_back_with_their_sizes(tmp_path: Path) -> None:
    parts, refiner = tiny_parts(), tiny_refiner()
    save_model(tmp_path / "t", parts.tokenizer)
    save_model(tmp_path / "g", parts.transformer, {"prior": "abc"})
    save_model(tmp_path / "r", refiner, {"transformer": "def"})
    read = load_refiner(tmp_path / "r")
    assert read.config == refiner.config
    assert read_inputs(tmp_path / "r") == {"transformer": "def"}
    assert not read.training
    tokenizer, model = load_tokenizer(tmp_path / "t"), load_transformer(tmp_path / "g")
    assert tokenizer.config == parts.tokenizer.config
    assert model.config == parts.transformer.config
    assert read_inputs(tmp_path / "g") == {"prior": "abc"}
    assert not model.training
    assert isinstance(model, GPT)
    for expected, actual in [
        (parts.tokenizer, tokenizer),
        (parts.transformer, model),
        (refiner, read),
    ]:
        state = actual.state_dict()
        assert all(torch.equal(state[k], v) for k, v in expected.state_dict().items())


def test_one_is_not_taken_for_the_other(tmp_path: Path) -> None:
    save_model(tmp_path / "t", tiny_parts().tokenizer)
    with pytest.raises(ArtifactError, match="is not a transformer"):
        load_transformer(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_damaged_and_missing_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(ArtifactError, match="t: cannot be read"):
        load_tokenizer(tmp_path / "t")
