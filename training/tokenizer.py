"""Train the VQ tokenizer.

::

    masc tokenizer train training/configs/cifar10/tokenizer.toml

The generator half of the VQGAN recipe: reconstruction (mean squared error), codebook and commitment
losses, optionally the entropy loss. Codes that nothing has used for a while restart at the
features of the current batch, which keeps short runs from wasting their codebook.
Writes ``tokenizer.safetensors``, ``metrics.json`` and ``reconstructions.png``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from masc_core.device import resolve_device
from masc_core.models.vq import VQConfig, VQModel
from masc_core.weights import save_tokenizer
from training.config import LoopConfig, set_threads
from training.images import ImageFolder
from training.loop import Report, Stage, fit, no_report
from training.reconstruction import reconstruction_metrics, reconstruction_sheet, to_float
from training.run import Run


class TokenizerConfig(LoopConfig):
    """Keys of a tokenizer run."""

    data: Path = Field(description="folder-per-class training images")
    val_data: Path = Field(description="folder-per-class validation images")
    val_images: int = Field(2000, ge=1, description="validation images, spread over the folder")
    image_size: int = Field(64, ge=8)
    num_codes: int = Field(2048, ge=2, description="V")
    code_dim: int = Field(8, ge=1, description="E")
    ch: int = Field(32, ge=32)
    ch_mult: tuple[int, ...] = Field((1, 2, 2), description="channel multiplier of each level")
    num_res_blocks: int = Field(2, ge=1)
    z_channels: int = Field(64, ge=1)
    commitment: float = Field(0.25, ge=0)
    entropy_ratio: float = Field(0.0, ge=0, description="weight of the entropy loss; 0 is off")
    flip: bool = Field(default=True, description="mirror training images at random")
    restart_codes_every: int = Field(
        0, ge=0, description="steps after which unused codes restart; 0 is never"
    )
    restart_codes_until: float = Field(
        0.8, ge=0, le=1, description="share of the run after which no code restarts any more"
    )

    def vq(self) -> VQConfig:
        """Sizes of the model; a `ConfigError` where the image does not fit the grid."""
        config = VQConfig(
            num_codes=self.num_codes,
            code_dim=self.code_dim,
            ch=self.ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            z_channels=self.z_channels,
        )
        config.grid_size(self.image_size)
        return config


def train_tokenizer(config: TokenizerConfig, report: Report = no_report) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    data, val_data = ImageFolder.scan(config.data), ImageFolder.scan(config.val_data)
    inputs = {"data": data.fingerprint(), "val_data": val_data.fingerprint()}
    with Run(config.out, config, inputs) as run:
        model = VQModel(config.vq(), beta=config.commitment, entropy_ratio=config.entropy_ratio).to(
            device
        )
        fit(run, config, _Trainer(run, config, model, data, val_data).stage(), report)
        return run.read_json("metrics.json")


class _Trainer:
    """Data, loss and validation of one run."""

    def __init__(
        self,
        run: Run,
        config: TokenizerConfig,
        model: VQModel,
        data: ImageFolder,
        val_data: ImageFolder,
    ) -> None:
        self.run, self.config, self.model = run, config, model
        self.device = next(model.parameters()).device
        self.train_pixels = data.read(config.image_size).pixels
        chosen = val_data.spread(config.val_images)
        self.val_pixels = val_data.read(config.image_size, chosen).pixels
        self.features = torch.empty(0)

    def stage(self) -> Stage:
        """Return what the loop needs."""
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.config.lr, betas=(0.9, 0.95), fused=True
        )
        return Stage(
            model=self.model,
            optimizer=optimizer,
            num_items=len(self.train_pixels),
            loss=self.loss,
            validate=self.validate,
            keep=self.keep,
            after_step=self.after_step,
        )

    def loss(self, indices: Tensor) -> dict[str, Tensor]:
        """Reconstruction plus quantizer losses of a batch."""
        images = to_float(self.train_pixels[indices.numpy()]).to(self.device)
        if self.config.flip:
            mirror = (torch.rand(len(images), 1, 1, 1) < 0.5).to(self.device)
            images = torch.where(mirror, images.flip(3), images)
        features = self.model.features(images)
        self.features = features.detach()
        quantized = self.model.quantize(features)
        mse = F.mse_loss(self.model.decode(quantized.quant).float(), images)
        return {"loss": mse + quantized.loss, "mse": mse.detach(), **quantized.parts}

    def after_step(self, step: int) -> None:
        """Restart dead codes when it is time."""
        config = self.config
        total = len(self.train_pixels) // config.batch_size * config.epochs
        every = config.restart_codes_every
        if every and step % every == 0 and step <= config.restart_codes_until * total:
            restart_codes(self.model, self.features)

    def validate(self) -> dict[str, float]:
        """PSNR and codebook usage on the validation images."""
        metrics = reconstruction_metrics(self.model, self.val_pixels)
        return {"objective": -metrics["psnr"], **metrics}

    def keep(self, metrics: dict[str, float]) -> None:
        """Write the weights, their metrics and a sheet of reconstructions."""
        save_tokenizer(self.run.folder / "tokenizer.safetensors", self.model)
        self.run.write_json("metrics.json", metrics)
        sheet = reconstruction_sheet(self.model, self.val_pixels)
        sheet.save(self.run.folder / "reconstructions.png")


@torch.no_grad()
def restart_codes(model: VQModel, features: Tensor) -> int:
    """Put every code that the usage window has not seen on a random feature of a batch.

    Parameters
    ----------
    features : (B, E, h, w)

    Returns
    -------
    number of codes that restarted
    """
    quantizer = model.quantize
    window = quantizer.get_buffer("codebook_used").long()
    unused = torch.ones(quantizer.num_codes, dtype=torch.bool, device=window.device)
    unused[window] = False
    count = int(unused.sum())
    rows = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, E)
    rows = F.normalize(rows) if quantizer.l2_norm else rows
    picks = torch.randint(len(rows), (count,)).to(rows.device)
    quantizer.embedding.weight[unused] = rows[picks]
    return count
