"""Train the autoregressive transformer on clusters.

::

    masc transformer train training/configs/cifar10/transformer.toml

Codes become clusters as they are loaded, so inputs and targets are cluster ids and one code cache
serves every prior. AdamW as in the paper: betas 0.9 and 0.95, weight decay 0.05 on everything with
two dimensions, gradient norm 1.0, cosine to a tenth. Writes ``transformer.safetensors`` (the
weights with the lowest validation loss) and ``metrics.json``.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.files import sha256_file
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.weights import save_transformer
from training.code_cache import CodeCache
from training.config import LoopConfig, set_threads
from training.loop import Report, Stage, fit, no_report
from training.run import Run


class TransformerConfig(LoopConfig):
    """Keys of a transformer run."""

    codes: Path = Field(description="code cache of the training images")
    val_codes: Path = Field(description="code cache of the validation images")
    prior: Path | None = Field(None, description="prior.npz; the flat vocabulary without it")
    dim: int = Field(256, ge=8)
    n_layer: int = Field(8, ge=1)
    n_head: int = Field(4, ge=1)
    token_dropout: float = Field(0.1, ge=0, lt=1)
    resid_dropout: float = Field(0.1, ge=0, lt=1)
    ffn_dropout: float = Field(0.1, ge=0, lt=1)
    class_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels dropped for CFG")
    weight_decay: float = Field(0.05, ge=0)
    compile: bool = Field(default=False, description="compile the training step with torch.compile")


def train_transformer(config: TransformerConfig, report: Report = no_report) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    device = resolve_device(config.device)
    data = ClusterData(config)
    torch.manual_seed(config.seed)
    with Run(config.out, config, data.inputs) as run:
        model = GPT(data.model_config(config)).to(device)
        fit(run, config, _Trainer(run, config, data, model).stage(), report)
        return run.read_json("metrics.json")


class ClusterData:
    """Code caches of training and validation, seen through a prior.

    Attributes
    ----------
    inputs : hashes of images, tokenizer and prior, to which the trained weights hold

    Raises
    ------
    ConfigError
        The caches and the prior do not belong together.
    """

    def __init__(self, config: TransformerConfig) -> None:
        self.train, self.val = CodeCache.open(config.codes), CodeCache.open(config.val_codes)
        index = self.train.index
        for key in ("tokenizer_sha256", "num_codes", "num_positions", "class_names"):
            if getattr(index, key) != getattr(self.val.index, key):
                raise ConfigError(f"val_codes: has another {key} than codes")
        self.prior = (
            ClusterMap.load(config.prior) if config.prior else ClusterMap.identity(index.num_codes)
        )
        self.inputs = {
            "codes": index.files_sha256,
            "val_codes": self.val.index.files_sha256,
            "tokenizer": index.tokenizer_sha256,
            "prior": sha256_file(config.prior) if config.prior else "identity",
        }
        if self.prior.num_codes != index.num_codes:
            raise ConfigError(
                f"prior: is over {self.prior.num_codes} codes, the caches hold {index.num_codes}"
            )

    def model_config(self, config: TransformerConfig) -> GPTConfig:
        """Sizes of the model that fits the data."""
        return GPTConfig(
            vocab_size=self.prior.num_clusters,
            dim=config.dim,
            n_layer=config.n_layer,
            n_head=config.n_head,
            num_classes=len(self.train.index.class_names),
            block_size=self.train.index.num_positions,
            token_dropout=config.token_dropout,
            resid_dropout=config.resid_dropout,
            ffn_dropout=config.ffn_dropout,
            class_dropout=config.class_dropout,
        )

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B,) and clusters (B, L) of training images, a random variant of each."""
        images = indices.numpy()
        variants = torch.randint(self.train.index.num_variants, (len(images),)).numpy()
        clusters = self.prior.encode(self.train.take(images, variants))
        return torch.from_numpy(self.train.labels[images]), torch.from_numpy(clusters)

    def val_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Labels and clusters of validation images as they are, not mirrored."""
        images = np.arange(start, min(stop, len(self.val)))
        clusters = self.prior.encode(self.val.take(images, np.zeros_like(images)))
        return torch.from_numpy(self.val.labels[images]), torch.from_numpy(clusters)

    def unigram_bits(self) -> float:
        """Entropy of the clusters' frequencies in the training codes, in bits a position."""
        counts = np.bincount(
            self.prior.labels, weights=self.train.counts(), minlength=self.prior.num_clusters
        )
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())


class _Trainer:
    """Loss and validation of one run."""

    def __init__(self, run: Run, config: TransformerConfig, data: ClusterData, model: GPT) -> None:
        self.run, self.config, self.data, self.model = run, config, data, model
        self.device = next(model.parameters()).device
        self.forward: nn.Module = model
        if config.compile:
            require_compiler(self.device)
            self.forward = torch.compile(model)  # type: ignore[assignment]
        self.unigram_bits = data.unigram_bits()

    def stage(self) -> Stage:
        """Return what the loop needs."""
        return Stage(
            model=self.model,
            optimizer=adamw(self.model, self.config.lr, self.config.weight_decay),
            num_items=len(self.data.train),
            loss=self.loss,
            validate=self.validate,
            keep=self.keep,
        )

    def loss(self, indices: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy over all positions, in nats."""
        labels, clusters = self.data.batch(indices)
        loss = self.cross_entropy(labels, clusters)
        return {"loss": loss, "bits": loss.detach() / math.log(2)}

    def cross_entropy(self, labels: Tensor, clusters: Tensor) -> Tensor:
        """Mean over (B, L) positions of the loss of predicting ``clusters``."""
        clusters = clusters.to(self.device, non_blocking=True)
        logits = self.forward(labels.to(self.device, non_blocking=True), clusters[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), clusters.flatten())

    def validate(self) -> dict[str, float]:
        """Teacher-forced bits a position on the validation codes."""
        total, size = 0.0, self.config.batch_size
        low = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            for start in range(0, len(self.data.val), size):
                labels, clusters = self.data.val_batch(start, start + size)
                total += float(self.cross_entropy(labels, clusters)) * len(labels)
        bits = total / len(self.data.val) / math.log(2)
        return {"objective": bits, "bits_per_position": bits, "unigram_bits": self.unigram_bits}

    def keep(self, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics."""
        path = self.run.folder / "transformer.safetensors"
        save_transformer(path, self.model, self.data.inputs)
        self.run.write_json("metrics.json", metrics)


def require_compiler(device: torch.device) -> None:
    """Raise a `ConfigError` where torch.compile cannot work: it calls a compiler of C or C++."""
    variable, usual = ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    command = shlex.split(os.environ.get(variable, usual)) or [usual]
    if not shutil.which(command[0]):
        raise ConfigError(f"compile: needs a compiler; install {usual}, or pass --no-compile")


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices and embeddings, none on the norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
