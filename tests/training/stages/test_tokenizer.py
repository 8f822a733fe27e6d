from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from masc_core.bundle.write import BundleParts
from masc_core.errors import ArtifactError, ConfigError
from masc_core.models.gpt import GPT
from masc_core.models.vq import VQConfig, VQModel
from masc_core.models.weights import load_tokenizer, save_model
from masc_core.prior import ClusterMap
from tests.command_line import ROOT
from tests.tiny_bundle import save_bundle, tiny_card, tiny_parts
from tests.training.losses.vgg_files import linear_weights, write_weights
from tests.training.rank_processes import all_well
from tests.training.stage_configs import photographs, power_cut, tokenizer_config
from training.config import load_config
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.loop.checkpoint import latest_checkpoint
from training.loop.distributed import Ranks, init_distributed
from training.loop.run_dir import Run
from training.loop.task import TrainingTask
from training.loop.trainer import fit
from training.losses.efficientnet import EfficientNetDistance
from training.metrics.reconstruction import reconstruction_metrics
from training.stages.configs import TokenizerTrainingConfig
from training.stages.tokenizer import (
    _TokenizerTraining,
    new_discriminator,
    restart_codes,
    train_tokenizer,
    vq_config,
)

GAN: dict[str, object] = {"disc_weight": 0.5, "disc_channels": 16, "disc_layers": 2}

CONFIGS = sorted((ROOT / "training" / "configs").glob("*/tokenizer.toml"))


def log_of(run: Path, kind: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_learns_and_leaves_weights_metrics_and_a_sheet(tmp_path: Path) -> None:
    config = tokenizer_config(
        photographs(tmp_path),
        ch_mult=(1, 1),
        lr=4e-3,
        epochs=3,
        batch_size=4,
        restart_codes_every=8,
    )
    metrics = train_tokenizer(config)
    assert metrics["psnr"] == max(row["psnr"] for row in log_of(config.out, "validation"))
    pixels = open_images(config.val_data).read(16).pixels
    torch.manual_seed(config.seed)
    untrained = VQModel(vq_config(config))
    assert metrics["psnr"] > reconstruction_metrics(untrained, pixels)["psnr"] + 1.5
    model = load_tokenizer(config.out / "tokenizer.safetensors")
    again = reconstruction_metrics(model, pixels)
    assert again["psnr"] == pytest.approx(metrics["psnr"], rel=1e-4)
    assert again["codebook_usage"] == pytest.approx(metrics["codebook_usage"], abs=1 / 32)
    with Image.open(config.out / "reconstructions.png") as sheet:
        assert sheet.width >= 8 * 16


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and moments of both networks after the last step."""
    path = latest_checkpoint(run)
    assert path is not None
    shards = [load_file(shard) for shard in sorted(path.glob("*.safetensors"))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TokenizerTrainingConfig:
    """A run of 8 steps that nothing interrupts; the discriminator takes part from the sixth on."""
    changes: dict[str, object] = {"disc_start": 6, "ema_decay": 0.9, "micro_batch": 4}
    restarts: dict[str, object] = {"restart_codes_every": 8, "restart_codes_until": 1.0}
    root = photographs(tmp_path_factory.mktemp("whole"))
    config = tokenizer_config(root, **GAN | changes | restarts)
    train_tokenizer(config)
    return config


@pytest.mark.parametrize("die_at", [5, 7], ids=["before the discriminator's start", "after it"])
def test_continues_where_it_stopped(
    whole: TokenizerTrainingConfig, tmp_path: Path, die_at: int
) -> None:
    config = whole.model_copy(update={"out": tmp_path, "checkpoint_every": 2})
    calls = 0

    def die(step: int, total: int, text: str) -> None:
        nonlocal calls
        calls += 1
        if step == die_at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_tokenizer(config, die)
    assert calls == die_at
    train_tokenizer(config)
    expected, actual = final_state(whole.out), final_state(config.out)
    assert expected.keys() == actual.keys()
    assert {"model.1.main.3.running_var", "average.decoder.conv_out.weight"} < expected.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    kept = load_tokenizer(whole.out / "tokenizer.safetensors").state_dict()
    again = load_tokenizer(config.out / "tokenizer.safetensors").state_dict()
    assert all(torch.equal(again[key], value) for key, value in kept.items())


def test_an_encoder_is_trained_for_a_decoder_that_stays_as_it_is(tmp_path: Path) -> None:
    root, bundle = photographs(tmp_path), tmp_path / "bundle"
    torch.manual_seed(3)
    given = VQModel(vq_config(tokenizer_config(root)))
    prior = ClusterMap.identity(given.config.num_codes)
    model = GPT(replace(tiny_parts().transformer.config, vocab_size=prior.num_clusters))
    save_bundle(bundle, tiny_card(), BundleParts(model, given, prior))  # without the encoder
    config = tokenizer_config(root, decoder=bundle, epochs=1, checkpoint_every=2)
    with power_cut(3) as report:
        train_tokenizer(config, report)
    train_tokenizer(config)
    trained = load_tokenizer(config.out / "tokenizer.safetensors").state_dict()
    kept = TrainedTokenizer.open(bundle).model.state_dict()
    for name in kept.keys() - {"quantize.codebook_used"}:
        assert torch.equal(trained[name], kept[name]), name
    once = tokenizer_config(root, decoder=bundle, epochs=1, out=tmp_path / "once")
    train_tokenizer(once)
    again = load_tokenizer(once.out / "tokenizer.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.items())
    torch.manual_seed(config.seed)
    fresh = VQModel(given.config).state_dict()
    names = trained.keys() - kept.keys()
    assert all(not torch.equal(trained[name], fresh[name]) for name in names)


def test_an_encoder_that_is_there_is_where_training_begins(
    whole: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    root = whole.data.parent
    config = tokenizer_config(root, decoder=whole.out, out=tmp_path, epochs=1, lr=1e-12)
    metrics = train_tokenizer(config)
    first = json.loads((whole.out / "metrics.json").read_text())
    assert metrics["psnr"] == pytest.approx(first["psnr"], abs=1e-3)


def test_an_encoder_fits_its_decoder(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    save_model(tmp_path / "other.safetensors", tiny_parts().tokenizer)
    with pytest.raises(ConfigError, match="code_dim: must be 4, as in the decoder, not 8"):
        train_tokenizer(tokenizer_config(root, decoder=tmp_path / "other.safetensors"))
    with pytest.raises(ValidationError, match="disc_weight: must be 0 with a decoder"):
        tokenizer_config(root, decoder=tmp_path / "other.safetensors", **GAN)


def test_averaged_weights_are_what_is_measured_and_kept(whole: TokenizerTrainingConfig) -> None:
    metrics = json.loads((whole.out / "metrics.json").read_text())
    state, model = final_state(whole.out), load_tokenizer(whole.out / "tokenizer.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[f"average.{name}"])
        assert not torch.equal(parameter, state[f"model.0.{name}"])
    pixels = open_images(whole.val_data).read(16).pixels
    assert reconstruction_metrics(model, pixels)["psnr"] == pytest.approx(metrics["psnr"], rel=1e-4)


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> TokenizerTrainingConfig:
    """A finished run with a discriminator, from step 10 of 36 on."""
    root = photographs(tmp_path_factory.mktemp("contest"))
    # Adam makes the discriminator learn at any weight; a small one spares the few steps of PSNR.
    steps = {"epochs": 4, "batch_size": 4, "disc_start": 10}
    config = tokenizer_config(root, **GAN | steps | {"ch_mult": (1, 1), "disc_weight": 0.02})
    train_tokenizer(config)
    return config


def test_a_run_with_a_discriminator_learns(contest: TokenizerTrainingConfig) -> None:
    *_, last = log_of(contest.out, "validation")
    pixels = open_images(contest.val_data).read(16).pixels
    torch.manual_seed(contest.seed)
    untrained = VQModel(vq_config(contest))
    assert last["psnr"] > reconstruction_metrics(untrained, pixels)["psnr"] + 0.5
    steps = log_of(contest.out, "train")
    started = [row["step"] for row in steps if "adversarial" in row and "discriminator" in row]
    assert started == list(range(10, 37))
    for row in steps[9:]:
        parts = (row[name] for name in ("mse", "adversarial", "codebook", "commitment"))
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    accuracy = [row["discriminator_accuracy"] for row in steps[-16:]]
    assert sum(accuracy) / len(accuracy) > 0.75


def test_with_a_discriminator_the_last_weights_are_kept(contest: TokenizerTrainingConfig) -> None:
    *_, last = log_of(contest.out, "validation")
    metrics = json.loads((contest.out / "metrics.json").read_text())
    assert metrics["objective"] == last["objective"] == -36
    assert metrics["psnr"] == last["psnr"]


@pytest.fixture
def gan_task(tmp_path: Path) -> TrainingTask:
    """Training with a discriminator that takes part at once."""
    changes = GAN | {"disc_start": 1, "crop": "random"}
    config = tokenizer_config(photographs(tmp_path), **changes)
    data, val_data = open_images(config.data), open_images(config.val_data)
    with Run(config.out, config) as run:
        return _TokenizerTraining(run, config, {}, data, val_data).task()


def test_the_words_of_an_item_decide_how_it_is_seen(gan_task: TrainingTask) -> None:
    random_bits = np.random.default_rng(0).integers(0, 1 << 64, (8, 4), dtype=np.uint64)
    indices = np.full(8, 3)
    (pixels,), (again,) = (gan_task.batch(indices, random_bits) for _ in range(2))
    assert pixels.shape == (8, 16, 16, 3)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, again)
    assert len({image.numpy().tobytes() for image in pixels}) > 4
    (alone,) = gan_task.batch(indices[5:6], random_bits[5:6])
    assert torch.equal(alone[0], pixels[5])


def test_gradients_lie_in_memory_as_the_weights_do(gan_task: TrainingTask) -> None:
    (pixels,) = gan_task.batch(np.arange(4), np.zeros((4, 4), np.uint64))
    for trained in gan_task.trained_modules:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = trained.loss_module(pixels)["loss"]
        loss.backward()
        for name, parameter in trained.model.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride(), name


def train_and_tell(config: TokenizerTrainingConfig) -> None:
    """Train, and write what this rank ended with."""
    data, val_data = open_images(config.data), open_images(config.val_data)
    with init_distributed("cpu") as ranks, Run(config.out, config, {}, ranks) as run:
        task = _TokenizerTraining(run, config, {}, data, val_data).task()
        fit(run, config, task)
        ends = {
            f"{number}.{name}": tensor.contiguous()
            for number, trained in enumerate(task.trained_modules)
            for name, tensor in trained.model.state_dict().items()
        }
        save_file(ends, config.out / f"rank{ranks.rank}.safetensors")


def test_two_ranks_train_the_same_networks(tmp_path: Path) -> None:
    changes = GAN | {"disc_start": 5, "restart_codes_every": 4}
    root = photographs(tmp_path)
    config = tokenizer_config(root, **changes)
    all_well(2, train_and_tell, config)
    first, second = (load_file(config.out / f"rank{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    # Until its next forward pass, each rank has its own window and batch statistics.
    own = {name for name in first if "running" in name or name.endswith("codebook_used")}
    differing = {name for name in first if not torch.equal(first[name], second[name])}
    assert differing <= own
    assert "0.quantize.codebook_used" in differing

    alone = tokenizer_config(root, out=tmp_path / "alone", **changes)
    train_tokenizer(alone)
    for step in range(4):  # the ranks restart codes and judge by shares of the batch
        together, expected = (log_of(run, "train")[step] for run in (config.out, alone.out))
        for name in ("loss", "mse", "codebook", "commitment"):
            assert together[name] == pytest.approx(expected[name], rel=1e-3), (step, name)

    model = load_tokenizer(config.out / "tokenizer.safetensors")
    pixels = open_images(config.val_data).read(16).pixels
    *_, last = log_of(config.out, "validation")
    for name, value in reconstruction_metrics(model, pixels).items():
        assert last[name] == pytest.approx(value, rel=1e-4), name


def test_lpips_is_learned_and_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vgg, linear = write_weights(tmp_path)
    changes = {"lpips_vgg": vgg, "lpips_linear": linear, "keep": "lpips", "epochs": 1}
    config = tokenizer_config(photographs(tmp_path), **changes)
    metrics = train_tokenizer(config)
    assert metrics["objective"] == metrics["lpips"] > 0
    assert all(row["lpips"] > 0 for row in log_of(config.out, "train"))
    assert "LPIPS" not in caplog.text
    moved = vgg.rename(tmp_path / "moved.pth")
    train_tokenizer(config.model_copy(update={"lpips_vgg": str(moved)}))
    write_weights(tmp_path)
    torch.save(linear_weights() | {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, linear)
    with pytest.raises(ConfigError, match=r"begun otherwise: inputs\.lpips_linear is another"):
        train_tokenizer(config)
    linear.unlink()
    with pytest.raises(ArtifactError, match=r"vgg\.pth: cannot be read"):
        train_tokenizer(config)


def test_the_distance_of_efficientnet_is_learned_and_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photographs(tmp_path)
    found = {}
    for weight in (0.0, 1.0):
        changes = {"efficientnet_weight": weight, "lpips_weight": weight, "keep": "last"}
        config = tokenizer_config(root, out=tmp_path / f"{weight}", **changes)
        train_tokenizer(config)
        model = load_tokenizer(config.out / "tokenizer.safetensors")
        pixels = open_images(config.val_data).read(16).pixels
        distances = {"efficientnet": EfficientNetDistance()}
        found[weight] = reconstruction_metrics(model, pixels, distances)["efficientnet"]
    assert found[1.0] < found[0.0]
    *_, last = log_of(config.out, "validation")
    assert last["efficientnet"] == pytest.approx(found[1.0], rel=1e-4)
    assert all(row["efficientnet"] > 0 for row in log_of(config.out, "train"))
    assert "LPIPS" not in caplog.text  # another distance took its place
    other = EfficientNetDistance()
    other.weights_sha256 = "0" * 64
    monkeypatch.setattr("training.stages.tokenizer.EfficientNetDistance", lambda: other)
    with pytest.raises(ConfigError, match=r"begun otherwise: inputs\.efficientnet is another"):
        train_tokenizer(config)


@pytest.mark.gpu
def test_the_whole_recipe_on_a_gpu(tmp_path: Path) -> None:
    vgg, linear = write_weights(tmp_path)
    changes = {"device": "cuda", "precision": "bfloat16", "disc_start": 5, "disc_adaptive": True}
    files = {"lpips_vgg": vgg, "lpips_linear": linear, "ema_decay": 0.9}
    config = tokenizer_config(photographs(tmp_path), **GAN | changes | files, epochs=3)
    metrics = train_tokenizer(config)
    assert all(math.isfinite(value) for value in metrics.values())
    *_, last = log_of(config.out, "train")
    assert {"mse", "lpips", "adversarial", "discriminator", "codebook", "commitment"} < last.keys()
    again = train_tokenizer(config)  # from its checkpoint, with nothing left to do
    assert again == metrics


def test_going_without_lpips_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photographs(tmp_path)
    one_step: dict[str, object] = {"epochs": 1, "batch_size": 36}
    train_tokenizer(tokenizer_config(root, **one_step))
    assert caplog.text.count("training goes without LPIPS") == 1
    caplog.clear()
    train_tokenizer(tokenizer_config(root, out=tmp_path / "off", **one_step, lpips_weight=0))
    assert "LPIPS" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lpips_vgg": "vgg16.pth"}, "lpips_vgg and lpips_linear: LPIPS needs both files"),
        ({"keep": "lpips"}, "keep: lpips needs lpips_vgg"),
        ({"disc_loss": "wasserstein"}, "disc_loss: "),
        ({"disc_start": 0}, "disc_start: "),
    ],
)
def test_a_wrong_configuration_names_the_key(changes: dict[str, object], named: str) -> None:
    flags = {"out": "o", "data": "d", "val_data": "v", **changes}
    with pytest.raises(ConfigError, match=named):
        load_config(TokenizerTrainingConfig, None, flags)


def test_validation_images_that_cannot_be_read(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    for path in (root / "val").glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ArtifactError, match="none of the images for validation can be read"):
        train_tokenizer(tokenizer_config(root))


def test_the_image_must_be_large_enough_for_the_discriminator(tmp_path: Path) -> None:
    config = tokenizer_config(photographs(tmp_path), **GAN | {"disc_layers": 3})
    with pytest.raises(ConfigError, match="disc_layers: 3 strided layers"):
        train_tokenizer(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.parent.name))
def test_shipped_configurations_can_be_built(path: Path) -> None:
    config = load_config(TokenizerTrainingConfig, path, {})
    with torch.device("meta"):
        model, discriminator = VQModel(vq_config(config)), new_discriminator(config)
        images = torch.zeros(2, 3, config.image_size, config.image_size)
        assert model.decode(model.features(images)).shape == images.shape
        assert discriminator(images).numel() > 0


def test_the_shipped_recipe_is_upstreams() -> None:
    config = load_config(
        TokenizerTrainingConfig, next(p for p in CONFIGS if "imagenet256" in str(p)), {}
    )
    assert vq_config(config) == VQConfig.named("VQ-16")
    assert (config.epochs, config.batch_size, config.lr, config.min_lr_ratio) == (40, 128, 1e-4, 1)
    assert (config.lpips_weight, config.disc_weight, config.disc_start) == (1, 0.5, 20000)
    assert (config.criterion, config.ema_decay, config.entropy_ratio) == ("last", 0, 0)
    assert (config.crop, config.flip) == ("random", True)
    assert not config.disc_adaptive
    assert config.lpips_sources


def test_image_size_must_fit_the_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        train_tokenizer(tokenizer_config(photographs(tmp_path), image_size=18))


def test_the_average_follows_codes_that_restart(whole: TokenizerTrainingConfig) -> None:
    state = final_state(whole.out)  # after step 8, where codes have just restarted
    restarted = torch.ones(whole.num_codes, dtype=torch.bool)
    restarted[state["model.0.quantize.codebook_used"].long()] = False
    assert restarted.any()
    live, average = (state[f"{of}.quantize.embedding.weight"] for of in ("model.0", "average"))
    torch.manual_seed(whole.seed)
    first = VQModel(vq_config(whole)).quantize.embedding.weight
    assert not (live == first).all(dim=1)[restarted].any()
    assert torch.equal(average[restarted], live[restarted])
    assert not torch.equal(average[~restarted], live[~restarted])


def test_unused_codes_restart_on_features_of_the_batch() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, code_dim=4, ch=32, ch_mult=(1,), z_channels=32))
    window = model.quantize.get_buffer("codebook_used")
    window.copy_(torch.arange(len(window)) % 3)
    before = model.quantize.embedding.weight.detach().clone()
    features = torch.randn(2, 4, 5, 5)
    restarted = restart_codes(model, features, Ranks(torch.device("cpu")))
    assert restarted.tolist() == [False] * 3 + [True] * 5
    after = model.quantize.embedding.weight.detach()
    assert torch.equal(after[:3], before[:3])
    rows = torch.nn.functional.normalize(features.permute(0, 2, 3, 1).reshape(-1, 4))
    nearest = (after[3:, None] - rows).abs().amax(dim=2).min(dim=1).values
    assert nearest.max() < 1e-6
