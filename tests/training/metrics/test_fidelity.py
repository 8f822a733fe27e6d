from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masc_core.errors import ArtifactError, ConfigError
from tests.golden_files import load_golden, load_golden_json
from training.metrics import fidelity
from training.metrics.fidelity import (
    Kind,
    create,
    inception_score,
    kernel_distance,
    load_extractor,
    precision_recall,
    torch_fidelity,
)
from training.metrics.reference import Statistics

CPU = torch.device("cpu")


def test_metrics_of_given_features_are_those_of_both_evaluators() -> None:
    golden, results = load_golden("eval/metrics.safetensors"), load_golden_json("eval/metrics.json")
    generated, real = golden["gen_features"], golden["ref_features"]
    statistics = Statistics.of(generated)
    assert np.allclose(statistics.mu, golden["gen.mu"].numpy(), rtol=1e-5)
    assert np.allclose(statistics.sigma, golden["gen.sigma"].numpy(), rtol=1e-5)
    distance = statistics.distance(Statistics.of(real))
    for evaluator in ("torch_fidelity", "adm"):
        assert distance == pytest.approx(results[evaluator]["fid"], rel=1e-4)
    score = inception_score(golden["gen_logits"])
    for key, value in results["torch_fidelity"]["isc_shuffled"].items():
        assert score[key] == pytest.approx(value, rel=1e-5)
    found = precision_recall(generated, real)
    assert found["precision"] == results["torch_fidelity"]["precision"]
    assert found["recall"] == results["torch_fidelity"]["recall"]


def test_kernel_distance_is_small_between_halves_and_large_between_worlds() -> None:
    generator = np.random.default_rng(0)
    first, second = torch.from_numpy(generator.normal(size=(2, 200, 8)).astype(np.float32))
    near, far = kernel_distance(first, second), kernel_distance(first, second + 2)
    assert abs(near["kernel_inception_distance_mean"]) < 0.05
    assert far["kernel_inception_distance_mean"] > 1


def test_precision_needs_neighbours() -> None:
    with pytest.raises(ConfigError, match="at least 4 images"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_of_many_real_images_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 60, 2))).float()
    expected = precision_recall(generated, real[::2])
    many = torch.cat([real[::2], torch.full((30, 2), 99.0)]).reshape(2, 30, 2).transpose(0, 1)
    monkeypatch.setattr(fidelity, "MAX_REAL_IMAGES", 30)
    assert precision_recall(generated, many.reshape(60, 2)[:59]) == expected


def inception_state() -> dict[str, torch.Tensor]:
    """Random weights under the right keys, of a network built without any."""
    layers = ["2048", "logits_unbiased"]
    module_class = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_class, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: None)
        module = create("inception-v3-compat", layers, Path("none"))
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_state(), path)
    return path


def test_inception_from_a_file_of_its_keys(weights: Path) -> None:
    extractor = load_extractor("inception", weights, CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features, logits = extractor(pixels)
    assert features.shape == (3, 2048)
    assert logits is not None
    assert logits.shape == (3, 1008)
    assert extractor.label == "inception"
    save_file(torch.load(weights, weights_only=True), weights.with_suffix(".safetensors"))
    again, _ = load_extractor("inception", weights.with_suffix(".safetensors"), CPU)(pixels)
    assert torch.equal(again, features)


def test_vgg_from_a_file_of_its_keys(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = torch_fidelity("feature_extractor_vgg16").torchvision.models.vgg16()
    # Views of one number each: a file of 553 MB in 10 kB.
    state = {k: torch.tensor(1e-3).expand(v.shape) for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    extractor = load_extractor("vgg", tmp_path / "vgg.pth", CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    features, logits = extractor(pixels)
    assert features.shape == (1, 4096)
    assert logits is None


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize("kind", ["inception", "vgg"])
def test_files_that_are_no_weights_are_refused(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing; it has to be"):
        load_extractor(kind, tmp_path / "none.pth", CPU)
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(Evil(tmp_path / "made"), protocol=2))
    with pytest.raises(ArtifactError, match="not a file of plain weights"):
        load_extractor(kind, evil, CPU)
    torch.save({"weight": Evil(tmp_path / "made")}, evil)
    with pytest.raises(ArtifactError, match="not a file of plain weights"):
        load_extractor(kind, evil, CPU)
    assert not (tmp_path / "made").exists()
    (tmp_path / "short.safetensors").write_bytes(b"\x08")
    with pytest.raises(ArtifactError, match="not a file of plain weights"):
        load_extractor(kind, tmp_path / "short.safetensors", CPU)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match="holds other weights than"):
        load_extractor(kind, tmp_path / "other.pth", CPU)
