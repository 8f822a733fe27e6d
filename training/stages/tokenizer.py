r"""Train the VQ tokenizer.

::

    masc tokenizer train training/configs/cifar10/tokenizer.toml

    masc tokenizer train training/configs/cifar10/tokenizer.toml --decoder models/cifar10/1 \
        --out runs/cifar10/encoder

LlamaGen's VQGAN recipe: Adam on the losses of `training.losses.tokenizer`, of which LPIPS needs
two files of weights, the distance in EfficientNet's features a package, and the discriminator is
off by default. Codes that nothing has used for a while restart at the features of the current
batch, which keeps short runs from wasting their codebook. With ``decoder`` codebook and decoder are
given, and an encoder is trained for them.
Under torchrun every rank holds both networks (DDP).
Writes ``tokenizer.safetensors``, ``metrics.json`` and ``reconstructions.png``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from masc_core.bundle.manifest import TOKENIZER_FILE
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import atomic_path, sha256_file
from masc_core.models.gigatok import GigaTok
from masc_core.models.vq import VQConfig, VQModel
from masc_core.models.weights import save_model
from masc_core.progress import ProgressCallback, no_progress
from training.config import set_threads
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.data.pixels import TrainingPixels
from training.data.source import ImageSource
from training.downloads import local_file
from training.loop.checkpoint import latest_step
from training.loop.distributed import Ranks, init_distributed
from training.loop.run_dir import Run
from training.loop.task import Indices, ItemRandomBits, TrainedModule, TrainingTask
from training.loop.trainer import fit
from training.losses.adversarial import PatchDiscriminator, num_patches
from training.losses.efficientnet import EfficientNetDistance
from training.losses.lpips import Lpips
from training.losses.tokenizer import (
    Adversary,
    DiscriminatorLoss,
    TokenizerLoss,
    WeightedDistance,
)
from training.metrics.reconstruction import reconstruction_metrics, reconstruction_sheet
from training.stages.configs import TokenizerTrainingConfig

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)


def vq_config(config: TokenizerTrainingConfig) -> VQConfig:
    """Sizes of the model; a `ConfigError` where the image does not fit the grid."""
    sizes = VQConfig(
        num_codes=config.num_codes,
        code_dim=config.code_dim,
        ch=config.ch,
        ch_mult=config.ch_mult,
        num_res_blocks=config.num_res_blocks,
        z_channels=config.z_channels,
    )
    sizes.grid_size(config.image_size)
    return sizes


def new_discriminator(config: TokenizerTrainingConfig) -> PatchDiscriminator:
    """Return one for the images; a `ConfigError` where they are too small for it."""
    num_patches(config.image_size, config.disc_layers)
    return PatchDiscriminator(config.disc_channels, config.disc_layers)


def train_tokenizer(
    config: TokenizerTrainingConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    data, val_data = open_images(config.data, config), open_images(config.val_data, config)
    inputs: dict[str, Any] = {"data": data.summary(), "val_data": val_data.summary()}
    files = {key: local_file(source, report) for key, source in config.lpips_sources.items()}
    distances = _distances(config, files)
    inputs |= {key: sha256_file(path) for key, path in files.items()}
    if "efficientnet" in distances:
        inputs["efficientnet"] = distances["efficientnet"].module.weights_sha256
    decoder = None if config.decoder is None else TrainedTokenizer.open(config.decoder)
    if decoder is not None:
        if isinstance(decoder.model, GigaTok):
            raise ConfigError(f"decoder: {config.decoder} is GigaTok's, which is not trained here")
        inputs["decoder"] = decoder.sha256
    with init_distributed(config.device) as ranks, Run(config.out, config, inputs, ranks) as run:
        model = None if decoder is None else decoder.model
        training = _TokenizerTraining(run, config, distances, data, val_data, model)
        fit(run, config, training.task(), report)
        return run.read_json("metrics.json")


class _TokenizerTraining:
    """Data, networks and validation of one run."""

    def __init__(
        self,
        run: Run,
        config: TokenizerTrainingConfig,
        distances: Mapping[str, WeightedDistance],
        data: ImageSource,
        val_data: ImageSource,
        decoder: VQModel | None = None,
    ) -> None:
        self.run, self.config, self.ranks = run, config, run.ranks
        self.distances = {
            name: distance.module.to(self.ranks.device) for name, distance in distances.items()
        }
        if not distances and config.lpips_weight and self.ranks.is_main:
            logger.warning("without lpips_vgg and lpips_linear, training goes without LPIPS")
        torch.manual_seed(config.seed)
        model = VQModel(
            vq_config(config), beta=config.commitment, entropy_ratio=config.entropy_ratio
        )
        if decoder is not None:
            keep_decoder(model, decoder)
        self.model = _to_device(model, self.ranks)
        self.loss_module = TokenizerLoss(
            self.model,
            distances,
            _adversary(config, self.ranks),
            latest_step(run.checkpoint),
        )
        self.images = TrainingPixels(data, config.image_size, crop=config.crop, flip=config.flip)
        chosen = val_data.spread(config.val_images)[self.ranks.rank :: self.ranks.world_size]
        self.val_pixels = val_data.read(config.image_size, chosen).pixels
        if not self.ranks.any(len(self.val_pixels) > 0):
            raise ArtifactError(val_data.root, "none of the images for validation can be read")

    def task(self) -> TrainingTask:
        """Return what the loop needs."""
        trained_modules = [
            TrainedModule(self.model, self.loss_module, _adam(self.model, self.config.lr))
        ]
        adversary = self.loss_module.adversary
        if adversary is not None:
            discriminator = adversary.discriminator
            discriminator_loss = DiscriminatorLoss(adversary, self.loss_module)
            trained_modules.append(
                TrainedModule(
                    discriminator, discriminator_loss, _adam(discriminator, self.config.lr)
                )
            )
        return TrainingTask(
            trained_modules=tuple(trained_modules),
            num_items=len(self.images),
            batch=self.batch,
            validate=self.validate,
            save_best=self.save_best,
            after_step=self.after_step,
            restart_rows=self.restart_rows,
        )

    def batch(self, indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor]:
        """Pixels uint8 (B, S, S, 3) of training images, cropped and mirrored by the bits."""
        return (torch.from_numpy(self.images.take(indices, random_bits)),)

    def after_step(self, step: int) -> None:
        """Count steps."""
        self.loss_module.finished_steps = step

    def restart_rows(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Restart unused codes when it is time."""
        config = self.config
        total = len(self.images) // config.batch_size * config.epochs
        every = 0 if config.decoder else config.restart_codes_every
        if not every or step % every or step > config.restart_codes_until * total:
            return []
        rows = restart_codes(self.model, self.loss_module.features, self.ranks)
        return [(self.model.quantize.embedding.weight, rows)]

    def validate(self) -> dict[str, float]:
        """Quality of the reconstructions of the validation images, and what codes they use."""
        values = reconstruction_metrics(
            self.model, self.val_pixels, self.distances, self.ranks.all_reduce_mean
        )
        objectives = {
            "psnr": -values["psnr"],
            "lpips": values.get("lpips", 0.0),
            "last": -float(self.loss_module.finished_steps),  # better every time
        }
        return {"objective": objectives[self.config.criterion], **values}

    def save_best(self, metrics: dict[str, float]) -> None:
        """Write the weights, their metrics and a sheet of reconstructions."""
        if not self.ranks.is_main:
            return
        save_model(self.run.folder / TOKENIZER_FILE, self.model)
        self.run.write_json("metrics.json", metrics)
        sheet = reconstruction_sheet(self.model, self.val_pixels)
        with atomic_path(self.run.folder / "reconstructions.png") as temporary:
            sheet.save(temporary)


def keep_decoder(model: VQModel, trained: VQModel) -> None:
    """Give a new model a trained codebook and decoder, which stay as they are.

    Where there is an encoder, too, training starts from it. A `ConfigError` where sizes differ.
    """
    for key, theirs in asdict(trained.config).items():
        ours = getattr(model.config, key)
        if ours != theirs:
            raise ConfigError(f"{key}: must be {theirs}, as in the decoder, not {ours}")
    model.load_state_dict(trained.state_dict(), strict=False)
    for part in (model.quantize, model.post_quant_conv, model.decoder):
        part.requires_grad_(requires_grad=False)


def _to_device(network: Network, ranks: Ranks) -> Network:
    """On the rank's device, channels last, as images and so gradients are: DDP wants them alike."""
    return network.to(ranks.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _adam(model: nn.Module, rate: float) -> Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, lr=rate, betas=(0.9, 0.95), fused=True)


def _distances(
    config: TokenizerTrainingConfig, lpips_files: Mapping[str, Path]
) -> dict[str, WeightedDistance]:
    """The perceptual distances that the loss has, by name."""
    distances = {}
    if lpips_files:
        distances["lpips"] = WeightedDistance(
            Lpips.load(*lpips_files.values()), config.lpips_weight
        )
    if config.efficientnet_weight:
        distances["efficientnet"] = WeightedDistance(
            EfficientNetDistance(), config.efficientnet_weight
        )
    return distances


def _adversary(config: TokenizerTrainingConfig, ranks: Ranks) -> Adversary | None:
    if not config.disc_weight:
        return None
    return Adversary(
        _to_device(new_discriminator(config), ranks),
        config.disc_loss,
        config.disc_weight,
        config.disc_start,
        config.disc_adaptive,
    )


@torch.no_grad()
def restart_codes(model: VQModel, features: Tensor, ranks: Ranks) -> Tensor:
    """Put every code that the usage window has not seen on a random feature (B, E, h, w).

    Returns which ones, bool (V,). Collective, call on every rank: the main rank's window and batch
    decide. DDP hands its buffers on, so the window holds the codes of that rank's share.
    """
    quantizer = model.quantize
    window = quantizer.get_buffer("codebook_used").long()
    unused = torch.ones(quantizer.num_codes, dtype=torch.bool, device=window.device)
    unused[window] = False
    ranks.broadcast(unused)
    count = int(unused.sum())
    rows = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, E)
    rows = F.normalize(rows) if quantizer.l2_norm else rows
    picks = torch.randint(len(rows), (count,)).to(rows.device)
    quantizer.embedding.weight[unused] = rows[picks]
    ranks.broadcast(quantizer.embedding.weight)
    return unused
