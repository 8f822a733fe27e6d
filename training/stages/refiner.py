"""Train the refiner, on the hidden states of a transformer that stays as it is.

::

    masc refiner train training/configs/cifar10/refiner.toml

Reported are the bits that naming the code within its cluster costs on validation images, beside
what uniform and frequency decoding cost: a refiner that is not below them is not worth its time.
Writes ``refiner.safetensors`` and ``metrics.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from masc_core.bundle.manifest import REFINER_FILE
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.weights import load_transformer, read_inputs, save_model
from training.config import LoopConfig, MayChange, set_threads
from training.data.cluster_data import ClusterData
from training.loop.distributed import join_ranks
from training.loop.run_dir import Run
from training.loop.stage import Report, Stage, TrainedModule, no_report
from training.loop.trainer import fit
from training.losses.refiner import InClusterLoss
from training.losses.transformer import LN2
from training.metrics.cluster_bits import frequency_bits
from training.stages.transformer import adamw


class RefinerTraining(LoopConfig):
    """Keys of a refiner run."""

    codes: MayChange[Path] = Field(description="code cache of the training images")
    val_codes: MayChange[Path] = Field(description="code cache of the validation images")
    prior: MayChange[Path] = Field(description="prior.npz")
    transformer: MayChange[Path] = Field(description="transformer.safetensors")
    width: int = Field(512, ge=2)
    n_head: int = Field(4, ge=1)
    ffn_dim: int = Field(2048, ge=1)
    autoregressive: bool = Field(default=True, description="read the codes before")
    dropout: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    singletons: bool = Field(
        default=True,
        description="count positions of one-code clusters in the mean that is learnt; without them "
        "micro-batches weigh alike, whatever they have to learn",
    )

    def refiner(self, data: ClusterData, hidden_dim: int) -> RefinerConfig:
        """Sizes of the model that fits the data and the transformer."""
        return RefinerConfig(
            num_codes=data.prior.num_codes,
            num_clusters=data.prior.num_clusters,
            hidden_dim=hidden_dim,
            block_size=data.num_positions,
            width=self.width,
            n_head=self.n_head,
            ffn_dim=self.ffn_dim,
            autoregressive=self.autoregressive,
            dropout=self.dropout,
        )


def train_refiner(config: RefinerTraining, report: Report = no_report) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept.

    Raises
    ------
    ConfigError
        Codes, prior and transformer do not belong together, or there is nothing to refine.
    """
    set_threads(config.threads)
    with join_ranks(config.device) as ranks:
        data = ClusterData(config.codes, config.val_codes, config.prior, ranks)
        _check(config, data)
        inputs = data.inputs | {"transformer": sha256_file(config.transformer)}
        transformer = load_transformer(config.transformer)
        _check_sizes(transformer.config, data)
        with Run(config.out, config, inputs, ranks) as run:
            torch.manual_seed(config.seed)
            sizes = config.refiner(data, transformer.config.dim)
            objective = InClusterLoss(
                Refiner(sizes).to(ranks.device),
                transformer.to(ranks.device),
                data.prior,
                singletons=config.singletons,
            )
            fit(run, config, _Trainer(run, config, data, objective, inputs).stage(), report)
            return run.read_json("metrics.json")


class _Trainer:
    """Validation of one run, and what it keeps."""

    def __init__(
        self,
        run: Run,
        config: RefinerTraining,
        data: ClusterData,
        objective: InClusterLoss,
        inputs: dict[str, str],
    ) -> None:
        self.run, self.config, self.data, self.objective = run, config, data, objective
        self.inputs = inputs
        self.baselines = {
            "uniform_bits": data.member_bits(),
            "frequency_bits": frequency_bits(data.prior, data.train_counts, data.val_counts),
        }

    def stage(self) -> Stage:
        """Return what the loop needs."""
        refiner = self.objective.refiner
        optimizer = adamw(refiner, self.config.lr, self.config.weight_decay)
        return Stage(
            trained_modules=(TrainedModule(refiner, self.objective, optimizer),),
            num_items=len(self.data.train),
            batch=self.data.code_batch,
            validate=self.validate,
            keep=self.keep,
        )

    def validate(self) -> dict[str, float]:
        """In-cluster bits on the validation codes, of all positions and of those with a choice.

        The ranks share the batches.
        """
        ranks, size = self.run.ranks, self.config.micro_batch_of(self.run.ranks.count)
        device, low = ranks.device, self.config.precision == "bfloat16"
        total, count, num_open = 0.0, 0, 0
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            for start in range(size * ranks.rank, len(self.data.val), size * ranks.count):
                labels, codes = self.data.val_code_batch(start, start + size)
                losses, is_open = self.objective.losses(labels.to(device), codes.to(device))
                total += float(losses.double().sum()) / LN2
                count, num_open = count + len(losses), num_open + int(is_open.sum())
        bits, positions, open_positions = ranks.all_reduce_sum(total, count, num_open)
        return {
            "objective": bits / positions,
            "in_cluster_bits": bits / positions,
            "in_cluster_bits_where_open": bits / max(1, open_positions),
            "open_positions": open_positions / positions,
            **self.baselines,
        }

    def keep(self, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics."""
        if self.run.ranks.is_main:
            save_model(self.run.folder / REFINER_FILE, self.objective.refiner, self.inputs)
            self.run.write_json("metrics.json", metrics)


def _check(config: RefinerTraining, data: ClusterData) -> None:
    trained = read_inputs(config.transformer)
    for name in ("tokenizer", "prior"):
        if trained.get(name) != data.inputs[name]:
            raise ConfigError(f"transformer: was trained with another {name} than this {name}")
    if data.prior.num_clusters == data.prior.num_codes:
        raise ConfigError("prior: every cluster has one code, there is nothing to refine")


def _check_sizes(sizes: GPTConfig, data: ClusterData) -> None:
    for what, has, hold in (
        ("positions", sizes.block_size, data.num_positions),
        ("classes", sizes.num_classes, data.num_classes),
    ):
        if has != hold:
            raise ConfigError(f"transformer: is for {has} {what}, the caches hold {hold}")
