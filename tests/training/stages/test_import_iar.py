"""IAR's files: transformers over renumbered codes, and the mapping that renumbers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from masc_core.bundle.read import load_bundle
from masc_core.errors import ArtifactError, ConfigError
from masc_core.generation.generate import generate
from masc_core.io.files import sha256_file
from masc_core.prior import ClusterMap
from masc_core.sampling.params import SamplingParams
from tests.command_line import Masc
from tests.golden_files import load_golden
from tests.hub_server import hub_server
from tests.training.pretrained.checkpoints import (
    NAMES,
    gpt_tensors,
    renumbered,
    save_checkpoint,
    save_iar_checkpoint,
    vq_tensors,
)
from tests.training.tiny_codes import write_cache
from training.stages.configs import ImportConfig, TransformerTrainingConfig
from training.stages.import_weights import import_model
from training.stages.transformer import train_transformer


@pytest.fixture(scope="module")
def mapping() -> Tensor:
    """Of 96 codes in 12 clusters of 8, as IAR's code made it."""
    return load_golden("iar/balanced_kmeans.safetensors")["old_to_new"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mapping: Tensor) -> Path:
    """Holds ``iar.pt``, ``vq.pt``, ``mapping.pt`` and ``names.txt``; not to be written to."""
    root = tmp_path_factory.mktemp("iar")
    save_iar_checkpoint(root / "iar.pt", mapping)
    save_checkpoint(root / "vq.pt", vq_tensors(), "ddp")
    torch.save(mapping, root / "mapping.pt")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


def config(folder: Path, models: Path, **changes: Any) -> ImportConfig:
    values: dict[str, Any] = {
        "gpt": folder / "iar.pt",
        "tokenizer": folder / "vq.pt",
        "mapping": folder / "mapping.pt",
        "name": "iar",
        "models": models,
        "classes": folder / "names.txt",
        "image_size": 16,
        "n_head": 4,
        "weights_dtype": "float32",
        "samples": 0,
    }
    return ImportConfig.model_validate(values | changes)


def clusters() -> ClusterMap:
    return ClusterMap.from_labels(load_golden("iar/balanced_kmeans.safetensors")["assignments"])


def test_codes_get_their_numbers_back(folder: Path, tmp_path: Path) -> None:
    manifest = import_model(config(folder, tmp_path))
    bundle = load_bundle(tmp_path / "iar" / "1")
    weights = bundle.transformer.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in gpt_tensors().items())
    (partition,) = bundle.partitions
    assert np.array_equal(partition.labels, clusters().labels)
    imported = manifest.provenance["imported"]
    assert isinstance(imported, dict)
    assert imported["mapping"] == {
        "file": "mapping.pt",
        "sha256": sha256_file(folder / "mapping.pt"),
        "cluster_size": 8,
    }


def test_a_mapping_by_address_says_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    with hub_server() as hub:
        hub.files["plain/mapping.pt"] = (folder / "mapping.pt").read_bytes()
        address = f"{hub.web}/plain/mapping.pt"
        manifest = import_model(config(folder, tmp_path, mapping=f"{address}?signature=secret"))
    imported = manifest.provenance["imported"]
    assert isinstance(imported, dict)
    assert isinstance(imported["mapping"], dict)
    assert imported["mapping"]["address"] == address


def test_renumbered_or_with_the_renumbered_tokenizer_images_are_the_same(
    folder: Path, tmp_path: Path, mapping: Tensor
) -> None:
    # IAR's own pair: transformer and tokenizer both over the new numbers, nothing renumbered here.
    gpt = renumbered(gpt_tensors(), mapping, "tok_embeddings.weight", "output.weight")
    save_file(gpt, tmp_path / "gpt.safetensors")
    vq = renumbered(vq_tensors(), mapping, "quantize.embedding.weight")
    save_checkpoint(tmp_path / "vq.pt", vq, "ddp")
    pair = {"gpt": tmp_path / "gpt.safetensors", "tokenizer": tmp_path / "vq.pt", "mapping": None}
    import_model(config(folder, tmp_path / "models", **pair, version="moved"))
    import_model(config(folder, tmp_path / "models", version="standard"))
    moved, standard = (
        load_bundle(tmp_path / "models" / "iar" / version) for version in ("moved", "standard")
    )
    params = [SamplingParams(label, 2.0, seed=0, temperature=0) for label in (0, 3, 9)]
    codes = generate(standard.transformer, standard.code_sampler, params).codes
    theirs = generate(moved.transformer, moved.code_sampler, params).codes
    assert torch.equal(theirs, mapping[codes])
    assert np.array_equal(moved.render(theirs), standard.render(codes))


def test_the_size_of_the_clusters_is_given_where_the_file_does_not_tell(
    folder: Path, tmp_path: Path, mapping: Tensor
) -> None:
    tensors = renumbered(gpt_tensors(), mapping, "tok_embeddings.weight", "output.weight")
    save_file(tensors, tmp_path / "gpt.safetensors")
    wanted = {"gpt": tmp_path / "gpt.safetensors", "cluster_size": 24}
    assert import_model(config(folder, tmp_path, **wanted)).partitions == (4,)
    with pytest.raises(ConfigError, match="96 codes are no clusters of 128 each"):
        import_model(config(folder, tmp_path, gpt=tmp_path / "gpt.safetensors", version="2"))


def test_what_does_not_fit_is_refused_in_one_line(
    folder: Path, tmp_path: Path, mapping: Tensor
) -> None:
    def saved(name: str, content: Any) -> Path:
        torch.save(content, tmp_path / f"{name}.pt")
        return tmp_path / f"{name}.pt"

    twice = mapping.clone()
    twice[0] = twice[1]
    plain = save_checkpoint(tmp_path / "plain.pt", gpt_tensors(), "ddp")
    refused: dict[str, dict[str, Any]] = {
        r"mapping: .*iar\.pt has IAR's numbers of codes": {"mapping": None},
        "mapping: is of 48 codes, but .* predicts 96": {
            "mapping": saved("short", torch.arange(48))
        },
        "twice.pt: is no permutation": {"mapping": saved("twice", twice)},
        "far.pt: is no permutation": {"mapping": saved("far", mapping + 1)},
        "no mapping of IAR: it holds torch.float32": {"mapping": saved("real", mapping.float())},
        r"no mapping of IAR: it holds torch.int64 \(12, 8\)": {
            "mapping": saved("square", mapping.view(12, 8))
        },
        "it holds no tensor alone": {"mapping": saved("named", {"mapping": mapping})},
        "spread.pt: is no mapping": {"mapping": saved("spread", torch.tensor(0).expand(96))},
        "none.pt: cannot be read": {"mapping": tmp_path / "none.pt"},
        "was trained with 8, not 16": {"cluster_size": 16},
        r"plain\.pt has LlamaGen's numbers": {"gpt": plain},
    }
    for complaint, changes in refused.items():
        with pytest.raises((ArtifactError, ConfigError), match=complaint) as caught:
            import_model(config(folder, tmp_path / "models", **changes))
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "models").glob("*/*"))
    with pytest.raises(ValueError, match="cluster_size: is of a mapping"):
        config(folder, tmp_path, mapping=None, cluster_size=8)


def test_a_training_does_not_start_from_renumbered_codes(folder: Path, tmp_path: Path) -> None:
    codes, labels = np.zeros((8, 2, 16), np.int64), np.zeros(8, np.int64)
    header = {"num_codes": 96, "image_size": 16, "class_names": NAMES}
    cache = write_cache(tmp_path / "codes", codes, labels, **header)
    wanted = TransformerTrainingConfig(
        codes=cache, val_codes=cache, init=folder / "iar.pt", out=tmp_path / "run", dim=64,
        n_layer=2, n_head=4, batch_size=8,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has IAR's numbers of codes"):
        train_transformer(wanted)


def test_the_mapping_becomes_a_prior(masc: Masc, folder: Path, tmp_path: Path) -> None:
    source, out = str(folder / "mapping.pt"), str(tmp_path / "prior")
    done = masc("prior", "import", source, "--out", out, "--cluster-size", "8")
    assert done.status == 0, done.stderr
    assert "96 codes in 12 clusters" in done.stdout
    assert np.array_equal(ClusterMap.load(tmp_path / "prior/prior.npz").labels, clusters().labels)
    done = masc("prior", "import", source, "--out", str(tmp_path / "other"))
    assert (done.status, "no clusters of 128 each" in done.stderr) == (2, True)
    assert not (tmp_path / "other").exists()
