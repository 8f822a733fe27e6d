"""A real bundle with random weights, small enough to load and run in milliseconds.

32 codes in 16 clusters from a real tree, 4x4 positions, 16x16 pixels, 5 classes. The head, which a
new transformer has as zeros, is random, so that images differ between classes and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    TRANSFORMER_FILE,
    Defaults,
    Manifest,
    ModelCard,
    read_manifest,
    write_manifest,
)
from masc_core.bundle.registry import Registry
from masc_core.bundle.write import BundleParts, draft_version
from masc_core.io.files import sha256_file
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gigatok import GigaTok, GigaTokConfig
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel
from masc_core.tree import build_tree

CLASS_NAMES = ("ant", "bee", "cat", "dog", "eel")
NUM_CODES, NUM_CLUSTERS, GRID, IMAGE_SIZE = 32, 16, 4, 16
TINY_GIGATOK = GigaTokConfig(
    num_codes=NUM_CODES,
    code_dim=4,
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    z_channels=32,
    latent_shape=(1, GRID**2),
    encoder_width=16,
    encoder_layers=1,
    encoder_heads=2,
    decoder_width=32,
    decoder_layers=2,
    decoder_heads=4,
)


def tiny_card(name: str = "tiny", version: str = "1") -> ModelCard:
    return ModelCard(
        name=name,
        version=version,
        created=datetime(2025, 1, 2, tzinfo=UTC),
        class_names=CLASS_NAMES,
        defaults=Defaults(cfg_scale=2.0),
        provenance={"weights": "random"},
        metrics={"psnr_db": 0.0},
    )


def tiny_parts(
    seed: int = 0,
    *,
    counts: bool = True,
    refiner: bool = False,
    completer: bool = False,
    partitions: Sequence[int] = (),
) -> BundleParts:
    """Models that belong together; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = VQModel(
            VQConfig(
                num_codes=NUM_CODES,
                code_dim=4,
                ch=32,
                ch_mult=(1, 1, 2),
                num_res_blocks=1,
                z_channels=32,
            )
        )
        model = GPT(
            GPTConfig(
                vocab_size=NUM_CLUSTERS,
                dim=32,
                n_layer=2,
                n_head=2,
                num_classes=len(CLASS_NAMES),
                block_size=GRID**2,
            )
        )
        torch.nn.init.normal_(model.output.weight, std=0.5)
        for embedding in (model.cls_embedding.embedding_table, model.tok_embeddings):
            torch.nn.init.normal_(embedding.weight, std=1.0)
    tree = build_tree(tokenizer.quantize.codebook().detach())
    return BundleParts(
        transformer=model.eval(),
        tokenizer=tokenizer.eval(),
        prior=tree.cut(NUM_CLUSTERS),
        counts=np.random.default_rng(seed).integers(0, 100, NUM_CODES) if counts else None,
        refiner=tiny_refiner(seed) if refiner else None,
        completer=tiny_completer(seed) if completer else None,
        partitions=[tree.cut(num_clusters) for num_clusters in partitions],
    )


def tiny_gigatok_parts(seed: int = 0) -> BundleParts:
    """The same with a 1-D tokenizer of 16 tokens, and a transformer with learned positions."""
    parts = tiny_parts(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = GigaTok(TINY_GIGATOK)
        model = GPT(replace(parts.transformer.config, positions="learned"))
        for name, weight in tokenizer.named_parameters():
            if "norm" not in name and "quantize" not in name and weight.dim() > 1:
                torch.nn.init.xavier_normal_(weight, gain=1.5)  # images that tokens change
    model.load_state_dict(parts.transformer.state_dict(), strict=False)
    codebook = tokenizer.quantize.codebook().detach()
    return replace(
        parts,
        transformer=model.eval(),
        tokenizer=tokenizer.eval(),
        prior=build_tree(codebook).cut(NUM_CLUSTERS),
    )


def tiny_refiner(seed: int = 0) -> Refiner:
    """A refiner of the tiny models, none of whose draws is sure."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        refiner = Refiner(
            RefinerConfig(
                num_codes=NUM_CODES,
                num_clusters=NUM_CLUSTERS,
                hidden_dim=32,
                block_size=GRID**2,
                width=16,
                n_head=2,
                ffn_dim=32,
            )
        )
        for parameter in refiner.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return refiner.eval()


def tiny_completer(seed: int = 0, **changes: Any) -> Completer:
    """A completer of the tiny models, none of whose draws is sure."""
    sizes: dict[str, Any] = {
        "vocab_size": NUM_CODES,
        "num_clusters": NUM_CLUSTERS,
        "dim": 16,
        "n_layer": 2,
        "n_head": 2,
        "num_classes": len(CLASS_NAMES),
        "block_size": GRID**2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        completer = Completer(CompleterConfig(**sizes | changes))
        for parameter in completer.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return completer.eval()


def edit_manifest(folder: Path, old: str, new: str) -> None:
    """Replace text in a manifest and seal it again: wrong, but written by us."""
    text = (folder / MANIFEST_FILE).read_text()
    assert old in text
    write_manifest(folder, Manifest.model_validate_json(text.replace(old, new)))


def spoil(folder: Path) -> None:
    """Put a NaN into a bundle's weights and seal it again: whole, but without images."""
    path = folder / TRANSFORMER_FILE
    tensors = load_file(path)
    tensors["norm.weight"].fill_(torch.nan)
    save_file(tensors, path)
    manifest = read_manifest(folder)
    files = {**manifest.files, TRANSFORMER_FILE: sha256_file(path)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def save_bundle(
    folder: Path,
    card: ModelCard,
    parts: BundleParts,
    *,
    weights_dtype: torch.dtype = torch.float16,
    with_encoder: bool = False,
) -> Manifest:
    """Write a bundle and nothing that is measured of it."""
    models = Registry(folder.parents[1])
    with draft_version(models, folder.parent.name, folder.name) as draft:
        return draft.write(card, parts, weights_dtype=weights_dtype, with_encoder=with_encoder)


def save_tiny_bundle(
    root: Path,
    name: str = "tiny",
    version: str = "1",
    *,
    seed: int = 0,
    counts: bool = True,
    refiner: bool = False,
    completer: bool = False,
    gigatok: bool = False,
    partitions: Sequence[int] = (),
) -> Manifest:
    """Publish a tiny bundle under ``root/name/version`` and make it the active version."""
    folder = root / name / version
    parts = tiny_parts(
        seed, counts=counts, refiner=refiner, completer=completer, partitions=partitions
    )
    if gigatok:
        parts = tiny_gigatok_parts(seed)
    manifest = save_bundle(folder, tiny_card(name, version), parts)
    Registry(root).activate(name, version)
    return manifest
