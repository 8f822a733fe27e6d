from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masc_core.errors import ConfigError
from training.classifier import ClassifierConfig
from training.codes import CodesConfig
from training.compare_inputs import CompareConfig
from training.config import StageConfig, load_config, set_threads
from training.prior import PriorConfig
from training.publish import PublishConfig
from training.show_inputs import ShowConfig
from training.tokenizer import TokenizerConfig
from training.transformer import TransformerConfig

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
STAGES: dict[str, type[StageConfig]] = {
    "tokenizer": TokenizerConfig,
    "codes": CodesConfig,
    "codes-val": CodesConfig,
    "prior": PriorConfig,
    "transformer": TransformerConfig,
    "classifier": ClassifierConfig,
    "compare": CompareConfig,
    "show": ShowConfig,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.toml")), ids=lambda p: str(p.stem))
def test_shipped_configurations_are_valid(path: Path) -> None:
    if path.stem == "publish":
        assert load_config(PublishConfig, path, {}).name == path.parent.name
        return
    config = load_config(STAGES[path.stem], path, {})
    assert str(config.out).startswith(f"runs/{path.parent.name}/")


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prior.toml"
    path.write_text('tokenizer = "a"\nout = "b"\nnum_clusters = 5\n')
    config = load_config(PriorConfig, path, {"num_clusters": 7, "out": None})
    assert config.num_clusters == 7
    assert config.out == Path("b")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('tokenizer = "a"\nout = "b"\nnum_cluster = 5\n', "num_cluster: Extra inputs"),
        ('tokenizer = "a"\nout = "b"\n', "num_clusters: Field required"),
        ('tokenizer = "a"\nout = "b"\nnum_clusters = 0\n', "num_clusters: "),
        ('tokenizer = "a"\nout = "b"\nnum_clusters = "many"\n', "num_clusters: "),
        ("tokenizer = ", "is not TOML"),
    ],
)
def test_wrong_files_name_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prior.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        load_config(PriorConfig, path, {})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(PriorConfig, tmp_path / "none.toml", {})


def test_threads_are_set_only_when_asked() -> None:
    before = torch.get_num_threads()
    set_threads(0)
    assert torch.get_num_threads() == before
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)
