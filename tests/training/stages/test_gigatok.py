"""GigaTok from its checkpoints to a served version, with any prior."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from masc_core.bundle.manifest import read_manifest
from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError
from masc_core.generation.generate import generate
from masc_core.models.gigatok import GigaTok, GigaTokConfig, new_tokenizer
from masc_core.models.vq import pixels_to_float
from masc_core.models.weights import load_tokenizer, load_transformer
from masc_core.prior import ClusterMap
from masc_core.sampling.params import SamplingParams
from tests.command_line import Masc, service
from tests.golden_files import assert_close, load_golden
from tests.masc_core.models.test_gigatok import GOLDEN_SIZES
from tests.server.sse import read_events
from tests.tiny_bundle import TINY_GIGATOK
from tests.training.pretrained.checkpoints import NAMES, gpt_tensors, save_checkpoint, vq_tensors
from tests.training.stage_configs import (
    codes_config,
    photographs,
    prior_config,
    tokenizer_config,
    transformer_config,
)
from training.data.code_cache import CodeCache
from training.data.images import open_images
from training.pretrained.checkpoint_file import CheckpointFile
from training.pretrained.models import read_vq_config
from training.stages.codes import extract_codes
from training.stages.configs import (
    CompareConfig,
    EvaluateConfig,
    ImportConfig,
    ImportTokenizerConfig,
    PublishConfig,
    ShowConfig,
)
from training.stages.evaluate import evaluate
from training.stages.import_weights import import_model, import_tokenizer
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.tokenizer import train_tokenizer
from training.stages.transformer import train_transformer
from training.studies.compare import compare_priors
from training.studies.show import show_prior

HEADS = 4


def upstream_tensors() -> dict[str, Tensor]:
    """GigaTok's own tokenizer with random weights, its head of the distillation included."""
    return load_golden("gigatok/tok1d_weights.safetensors")


def without_distillation(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if ".distill_mlp." not in name}


def small_tensors() -> dict[str, Tensor]:
    """A tokenizer over the codes of the transformer whose outputs upstream's code computed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {key: getattr(TINY_GIGATOK, key) for key in GigaTokConfig.__dataclass_fields__}
        return new_tokenizer(GigaTokConfig(**sizes | {"num_codes": 96})).state_dict()


def save(path: Path, **content: Any) -> Path:
    torch.save({"optimizer": {}, "discriminator": {}, "steps": 9, **content}, path)
    return path


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("weights", ["model", "ema"])
def test_a_tokenizer_is_taken_in_with_or_without_its_training_head(
    tmp_path: Path, weights: str, *, with_head: bool
) -> None:
    tensors = upstream_tensors() if with_head else without_distillation(upstream_tensors())
    other = {name: torch.zeros_like(one) for name, one in tensors.items()}
    content = {"model": other, "ema": other} | {weights: tensors}
    source = save(tmp_path / "VQ.pt", args=argparse.Namespace(vq_model="VQ", lr=1e-4), **content)
    config = ImportTokenizerConfig(
        source=source, out=tmp_path / "tokenizer", weights=weights, tokenizer_heads=HEADS
    )
    assert import_tokenizer(config) == {}
    model = load_tokenizer(config.out / "tokenizer.safetensors")
    assert isinstance(model, GigaTok)
    assert model.config == GOLDEN_SIZES
    origin = json.loads((config.out / "config.json").read_text())
    assert (origin["imported"]["weights"], origin["latent_shape"]) == (weights, [1, 16])
    io_tensors = load_golden("gigatok/tok1d_io.safetensors")
    with torch.no_grad():
        images, quantized = model(io_tensors["image"])
    assert torch.equal(quantized.codes.flatten(), io_tensors["indices"])
    assert_close(images, io_tensors["recon"], atol=1e-3, rtol=2e-3)


def test_released_sizes_tell_their_heads(tmp_path: Path) -> None:
    released = GigaTokConfig.named("S-S", num_codes=8)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GigaTok(released).state_dict().items()}
    tensors = {name: torch.empty(1).expand(shape) for name, shape in shapes.items()}
    assert read_vq_config(CheckpointFile(tmp_path / "VQ_SS256.pt", tensors)) == released


def test_files_that_are_no_such_tokenizer_are_refused_in_one_line(tmp_path: Path) -> None:
    def refuse(complaint: str, tensors: dict[str, Tensor], heads: int | None = HEADS) -> None:
        source = save(tmp_path / "VQ.pt", model=tensors)
        config = ImportTokenizerConfig(
            source=source, out=tmp_path / "tokenizer", tokenizer_heads=heads
        )
        with pytest.raises((ArtifactError, ConfigError), match=complaint) as caught:
            import_tokenizer(config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "tokenizer" / "tokenizer.safetensors").exists()

    tensors = without_distillation(upstream_tensors())
    refuse("tokenizer_heads: must be given: .* 2 layers of 32 channels", tensors, None)
    refuse("encoder_heads: 32 channels do not make 5 heads", tensors, 5)
    refuse("tokenizer_heads: .* has no transformers", vq_tensors())
    lacking = {k: v for k, v in tensors.items() if k != "s1to2decoder.ln_post.bias"}
    refuse("the tensor s1to2decoder.ln_post.bias is not in it", lacking)
    refuse("decoder.mid.2.x belongs to no part", tensors | {"decoder.mid.2.x": torch.zeros(1)})
    refuse(
        r"distill_mlp\.0\.evil belongs to no part",
        tensors | {"s1to2decoder.distill_mlp.0.evil": torch.zeros(1)},
    )
    other = "s2to1encoder.latent_token_positional_embedding"
    refuse("latent_shape: must be 1 row of 4, 16", tensors | {other: torch.zeros(15, 1, 32)})
    refuse("positional_embedding has the shape", tensors | {other: torch.zeros(64, 1, 32)})
    refuse("holds no s1to2decoder", {k: v for k, v in tensors.items() if "decoder_embed" not in k})
    plain = vq_tensors() | {"decoder.adaptive.0.beta.bias": torch.zeros(64)}
    refuse("belongs to no part", plain, None)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    source = tmp_path / "VQ.pt"
    source.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ArtifactError, match=r"VQ\.pt"):
        import_tokenizer(ImportTokenizerConfig(source=source, out=tmp_path / "tokenizer"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``GPT.pt``, ``VQ.pt`` and ``names.txt``; not to be written to."""
    folder = tmp_path_factory.mktemp("pair")
    save(folder / "GPT.pt", model=load_golden("gigatok/ar1d_weights.safetensors"))
    save(folder / "VQ.pt", model=small_tensors(), ema=small_tensors())
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


def pair_config(pair: Path, models: Path, **changes: Any) -> ImportConfig:
    values: dict[str, Any] = {
        "gpt": pair / "GPT.pt",
        "tokenizer": pair / "VQ.pt",
        "name": "gigatok",
        "models": models,
        "classes": pair / "names.txt",
        "n_head": 4,
        "tokenizer_heads": 2,
        "weights_dtype": "float32",
        "samples": 0,
    }
    return ImportConfig.model_validate(values | changes)


@pytest.mark.parametrize("kind", ["fsdp", "ddp", "deepspeed", "state_dict", "compiled"])
def test_a_pair_is_served_as_upstream_would_sample_it(
    pair: Path, tmp_path: Path, kind: str
) -> None:
    weights = load_golden("gigatok/ar1d_weights.safetensors")
    gpt = save_checkpoint(tmp_path / "gpt.pt", weights, kind)
    manifest = import_model(pair_config(pair, tmp_path / "models", gpt=gpt))
    assert (manifest.tokenizer, manifest.latent_shape, manifest.image_size) == (
        "gigatok1d",
        (1, 16),
        16,
    )
    assert (manifest.defaults.cfg_schedule, manifest.defaults.cfg_start) == ("step", 0.18)
    assert manifest.gpt.positions == "learned"
    assert not {"tree.npy", "patches.webp"} & manifest.files.keys()
    golden = load_golden("gigatok/ar1d_io.safetensors")
    bundle = load_bundle(tmp_path / "models" / "gigatok" / "1")
    params = [
        SamplingParams(label, 2.5, seed=0, temperature=0, cfg_schedule="step")
        for label in golden["labels"].tolist()
    ]
    codes = generate(bundle.transformer, bundle.code_sampler, params).codes
    assert torch.equal(codes, golden["greedy_step2p5.indices"].long())
    assert bundle.render(codes).shape == (4, 16, 16, 3)


def test_models_that_are_no_pair_are_refused_in_one_line(pair: Path, tmp_path: Path) -> None:
    grid_gpt = save_checkpoint(tmp_path / "c2i.pt", gpt_tensors(), "fsdp")
    grid_vq = save_checkpoint(tmp_path / "vq.pt", vq_tensors(), "fsdp")
    longer = load_golden("gigatok/ar1d_weights.safetensors")
    longer["positional_embedding"] = torch.zeros(65, 64)
    long_gpt = save(tmp_path / "long.pt", model=longer)
    few = save(tmp_path / "few.pt", model=upstream_tensors())
    models = tmp_path / "models"
    refused: dict[str, dict[str, Any]] = {
        r"VQ.pt makes codes of a sequence, as GigaTok does, but .*c2i.pt predicts a grid": {
            "gpt": grid_gpt,
            "image_size": 16,
        },
        r"vq.pt makes codes of a grid, as LlamaGen does, but .*GPT.pt predicts a sequence": {
            "tokenizer": grid_vq,
            "tokenizer_heads": None,
        },
        "image_size: must be 16, the only one of this tokenizer, not 32": {"gpt": long_gpt},
        "was trained on 16 pixels, not 32": {"image_size": 32},
        r"few.pt has 64 codes, but .*GPT.pt predicts 96|was trained on": {
            "tokenizer": few,
            "tokenizer_heads": 4,
        },
    }
    for complaint, changes in refused.items():
        with pytest.raises((ArtifactError, ConfigError), match=complaint) as caught:
            import_model(pair_config(pair, models, **changes))
        assert "\n" not in str(caught.value)
        assert not models.exists() or not list(models.iterdir())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a tokenizer of 64 codes, codes, and a prior of each kind."""
    root = photographs(tmp_path_factory.mktemp("gigatok"))
    source = save(root / "VQ.pt", model=upstream_tensors())
    import_tokenizer(
        ImportTokenizerConfig(
            source=source,
            out=root / "tokenizer",
            tokenizer_heads=HEADS,
            val_data=root / "val",
            image_size=32,
        )
    )
    for split in ("train", "val"):
        extract_codes(codes_config(root, split, image_size=32))
    for name, method in (("prior", "average"), ("kmeans", "kmeans"), ("flat", "average")):
        clusters = 64 if name == "flat" else 16
        build_prior(prior_config(root, out=root / name, method=method, num_clusters=clusters))
    return root


def test_flips_keep_their_labels(prepared: Path) -> None:
    cache = CodeCache.open(prepared / "codes-train")
    assert (cache.index.num_positions, cache.index.variants) == (16, "flip")
    config = codes_config(prepared, "train", image_size=32)
    images = open_images(config.data, config).read(32)
    assert np.array_equal(cache.labels, images.labels)
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    everyone = np.arange(len(cache))
    for variant, pixels in enumerate((images.pixels, images.pixels[:, :, ::-1].copy())):
        codes = cache.take(everyone, everyone * 0 + variant)
        with torch.no_grad():  # one by one, where those of different images cannot be confused
            alone = [model.encode(pixels_to_float(torch.from_numpy(p)[None])).codes for p in pixels]
        # Sums run in another order for another batch, which may decide between two close codes.
        assert (torch.cat(alone).numpy() == codes).mean() > 0.999
    assert len({codes.tobytes() for codes in cache.take(everyone, everyone * 0)}) == len(cache)


def test_images_of_another_size_are_refused(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "train", image_size=64, out=tmp_path / "codes")
    with pytest.raises(ConfigError, match="image_size: must be 32, the only one"):
        extract_codes(config)
    assert not (tmp_path / "codes").exists()


def test_priors_are_compared_over_all_codes_or_those_of_a_group(
    prepared: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        "tokenizer": prepared / "tokenizer",
        "images": prepared / "val",
        "codes": prepared / "codes-train",
        "methods": ("average", "kmeans"),
        "num_clusters": (4,),
        "image_size": 32,
        "draws": 2,
        "out": tmp_path / "compare",
    }

    def similarity(**changes: Any) -> list[float]:
        compared = compare_priors(CompareConfig(**values | changes))
        return [row.quality["uniform"].psnr_to_reconstruction.mean for row in compared.priors]

    whole, last = similarity(), similarity(positions=(8, 16))
    assert all(part > all_codes for part, all_codes in zip(last, whole, strict=True))
    with pytest.raises(ConfigError, match="positions: an image has 16"):
        similarity(positions=(8, 17))
    for wrong in ((8,), (8, 8), (9, 8), (1, 2, 3), (-1, 2)):
        with pytest.raises(ValueError, match="positions"):
            CompareConfig(**values | {"positions": wrong})


def test_what_needs_a_grid_refuses_in_one_line(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="codes of a 1-D tokenizer have no place"):
        show_prior(
            ShowConfig(
                tokenizer=prepared / "tokenizer", prior=prepared / "prior", out=tmp_path / "show"
            )
        )
    trained = tokenizer_config(prepared, decoder=prepared / "tokenizer", out=tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"decoder: .* is GigaTok's, which is not trained here"):
        train_tokenizer(trained)
    assert not (tmp_path / "encoder").exists()


def publish_config(root: Path, run: Path, models: Path, prior: str | None) -> PublishConfig:
    return PublishConfig(
        name="gigatok",
        models=models,
        tokenizer=root / "tokenizer",
        prior=None if prior is None else root / prior,
        codes=root / "codes-train",
        transformer=run,
        cfg_scale=2.0,
        cfg_schedule="step",
    )


def test_as_many_clusters_as_codes_train_to_the_flat_models_images(
    prepared: Path, tmp_path: Path
) -> None:
    images = []
    for prior in (None, "flat"):
        run = tmp_path / f"run-{prior}"
        path = None if prior is None else prepared / prior / "prior.npz"
        config = transformer_config(
            prepared, out=run, prior=path, positions="learned", schedule="wsd", epochs=1
        )
        train_transformer(config)
        publish(publish_config(prepared, run, tmp_path / str(prior), prior))
        bundle = load_bundle(tmp_path / str(prior) / "gigatok" / "1")
        params = [SamplingParams(i % 3, 2.0, seed=i, cfg_schedule="step") for i in range(4)]
        codes = generate(bundle.transformer, bundle.code_sampler, params).codes
        images.append(bundle.render(codes))
    assert np.array_equal(images[0], images[1])


def test_trained_published_evaluated_served_and_rolled_back(
    masc: Masc, prepared: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for prior in ("kmeans", "prior"):
        run = tmp_path / prior
        arguments = ["--codes", prepared / "codes-train", "--val-codes", prepared / "codes-val"]
        arguments += ["--prior", prepared / prior / "prior.npz", "--positions", "learned"]
        arguments += ["--schedule", "wsd", "--warmup-steps", 2, "--dim", 32, "--n-layer", 1]
        arguments += ["--n-head", 2, "--epochs", 1, "--batch-size", 8, "--out", run]
        done = masc("transformer", "train", *map(str, arguments))
        assert done.status == 0, done.stderr
        assert load_transformer(run / "transformer.safetensors").config.positions == "learned"
        publish(publish_config(prepared, run, models, prior))
    manifest = read_manifest(models / "gigatok" / "2")
    assert (manifest.tokenizer, manifest.num_codes, manifest.num_clusters) == ("gigatok1d", 64, 16)
    assert "psnr" in manifest.metrics
    measured = evaluate(
        EvaluateConfig(
            model="gigatok",
            models=models,
            images_per_class=2,
            codes=prepared / "codes-val",
            decoding="frequency",
        )
    )
    for name, curve in measured["curves"].items():
        groups = [curve[:1], curve[1:2], curve[2:4], curve[4:8], curve[8:]]
        means = [sum(group) / len(group) for group in groups]
        assert measured["latent_groups"][name] == pytest.approx(means)
    assert len(measured["latent_groups"]) == 3
    assert "latent_groups" in measured["definitions"]
    with service(models, MASC_DEVICE="cpu") as (_, client):
        (summary,) = client.get("/models").json()["models"]
        assert (summary["tokenizer"], summary["latent_shape"]) == ("gigatok1d", [1, 16])
        assert not summary["has_codebook"]
        assert client.get("/models/gigatok/codebook").status_code == 404
        body = {"class_id": 1, "seed": 5, "num_images": 2, "entropies": True}
        answer = client.post("/generate", json=body).json()
        assert answer["model"]["version"] == "2"
        streamed = client.post("/generate", json=body | {"stream": True})
        events = [(event.name, event.data) for event in read_events(streamed.text)]
        counts = [data["rows"] for name, data in events if name == "progress" and not data["image"]]
        assert counts == [4, 8, 12]
        previews = [data for name, data in events if name == "preview"]
        assert previews
        for data in previews:
            assert data["num_rows"] == 16
            with Image.open(io.BytesIO(base64.b64decode(data["b64"]))) as preview:
                assert preview.size == (32, 32)
        files = [data["b64"] for name, data in events if name == "image"]
        assert sorted(files) == sorted(image["b64"] for image in answer["images"])
        assert len(answer["images"][0]["entropies"]) == 16
        assert masc("models", "rollback", "gigatok", "--models", str(models)).status == 0
    assert Registry(models).current("gigatok") == "1"
    served = load_bundle(models / "gigatok" / "1").code_sampler.prior
    expected = ClusterMap.load(prepared / "kmeans" / "prior.npz")
    assert np.array_equal(served.labels, expected.labels)
