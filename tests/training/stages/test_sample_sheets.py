from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from tests.training.tiny_codes import walk_config
from training.stages.sample_sheets import Sheets
from training.stages.transformer import train_transformer


def test_sheets_of_the_epochs_that_were_asked_for(walks: Path, tmp_path: Path) -> None:
    config = walk_config(
        walks,
        tmp_path,
        sheet_epochs=(1, 3, 9),
        sheet_tokenizer=walks / "tokenizer.safetensors",
    )
    train_transformer(config)
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert [path.name for path in sheets] == ["epoch-0001.png", "epoch-0003.png"]
    with Image.open(sheets[0]) as first, Image.open(sheets[1]) as last:
        assert first.size == last.size == (3 * 96 + 2 * 2, 96 + 14)
        assert first.tobytes() != last.tobytes()


def test_sheets_do_not_change_the_run(walks: Path, tmp_path: Path) -> None:
    plain = walk_config(walks, tmp_path / "plain")
    drawn = walk_config(
        walks,
        tmp_path / "drawn",
        sheet_epochs=(1, 2),
        sheet_tokenizer=walks / "tokenizer.safetensors",
    )
    assert train_transformer(plain) == train_transformer(drawn)


def test_a_tokenizer_is_needed_and_has_to_be_the_codes_own(walks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sheet_tokenizer: is needed"):
        train_transformer(walk_config(walks, tmp_path, sheet_epochs=(1,)))
    with pytest.raises(ConfigError, match="has another codebook"):
        Sheets(walks / "tokenizer.safetensors", ClusterMap.identity(13), ("one",))
