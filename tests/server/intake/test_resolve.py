from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.manifest import Manifest
from masc_core.errors import InvalidFieldError, UnknownClassError
from server.intake.admit import DRAWN_SEED_BITS, resolve
from server.schemas.generate import GenerateBody
from tests.server.service import write_model


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_model(tmp_path)


def test_drawn_seeds_use_all_their_bits(manifest: Manifest) -> None:
    seeds = [resolve(GenerateBody(class_id=0), manifest, "png").seed for _ in range(300)]
    assert 2 ** (DRAWN_SEED_BITS - 4) < max(seeds) < 2**DRAWN_SEED_BITS
    assert len(set(seeds)) == len(seeds)


def test_the_format_of_the_body_wins(manifest: Manifest) -> None:
    assert resolve(GenerateBody(class_id=0), manifest, "webp").format == "webp"
    assert resolve(GenerateBody(class_id=0, format="png"), manifest, "webp").format == "png"


def test_a_request_says_which_version_it_was_resolved_against(manifest: Manifest) -> None:
    assert resolve(GenerateBody(class_id=0), manifest, "png").version == manifest.version == "v1"


def test_a_name_that_several_classes_have_is_answered_with_their_ids(manifest: Manifest) -> None:
    with pytest.raises(InvalidFieldError, match="2, 4") as refusal:
        resolve(GenerateBody(class_name="Crane"), manifest, "png")
    assert refusal.value.field == "class_name"


def test_a_class_out_of_range_is_answered_with_the_range(manifest: Manifest) -> None:
    with pytest.raises(UnknownClassError, match="0 to 5") as refusal:
        resolve(GenerateBody(class_id=6), manifest, "png")
    assert refusal.value.field == "class_id"
