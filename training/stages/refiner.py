"""Train the refiner, on the hidden states of a transformer that stays as it is.

::

    masc refiner train training/configs/cifar10/refiner.toml

Reported are the bits that naming the code within its cluster costs on validation images, beside
what uniform and frequency decoding cost: a refiner that is not below them is not worth its time.
Writes ``refiner.safetensors`` and ``metrics.json``.
"""

from __future__ import annotations

from typing import Any

import torch

from masc_core.bundle.manifest import REFINER_FILE
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.weights import load_transformer, read_inputs, save_model
from masc_core.progress import ProgressCallback, no_progress
from training.config import set_threads
from training.data.cluster_data import ClusterData
from training.loop.distributed import init_distributed
from training.loop.optimizer import adamw
from training.loop.run_dir import Run
from training.loop.task import TrainedModule, TrainingTask
from training.loop.trainer import autocast, fit
from training.losses.refiner import InClusterLoss
from training.losses.transformer import LN2
from training.metrics.cluster_bits import frequency_bits
from training.stages.configs import RefinerTrainingConfig


def train_refiner(
    config: RefinerTrainingConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept.

    Raises
    ------
    ConfigError : codes, prior and transformer do not belong together, or there is nothing to refine
    """
    set_threads(config.threads)
    with init_distributed(config.device) as ranks:
        data = ClusterData(config.codes, config.val_codes, config.prior, ranks)
        _check(config, data)
        origin = {"transformer": sha256_file(config.transformer)}
        inputs = data.inputs | origin
        transformer = load_transformer(config.transformer)
        _check_sizes(transformer.config, data)
        with Run(config.out, config, data.summary | origin, ranks) as run:
            torch.manual_seed(config.seed)
            sizes = RefinerConfig(
                num_codes=data.prior.num_codes,
                num_clusters=data.prior.num_clusters,
                hidden_dim=transformer.config.dim,
                block_size=data.num_positions,
                width=config.width,
                n_head=config.n_head,
                ffn_dim=config.ffn_dim,
                autoregressive=config.autoregressive,
                dropout=config.dropout,
            )
            loss_module = InClusterLoss(
                Refiner(sizes).to(ranks.device),
                transformer.to(ranks.device),
                data.prior,
                singletons=config.singletons,
            )
            fit(
                run, config, _RefinerTraining(run, config, data, loss_module, inputs).task(), report
            )
            return run.read_json("metrics.json")


class _RefinerTraining:
    """Validation of one run, and what it keeps."""

    def __init__(
        self,
        run: Run,
        config: RefinerTrainingConfig,
        data: ClusterData,
        loss_module: InClusterLoss,
        inputs: dict[str, str],
    ) -> None:
        self.run, self.config, self.data, self.loss_module = run, config, data, loss_module
        self.inputs = inputs
        self.baselines = {
            "uniform_bits": data.uniform_bits(),
            "frequency_bits": frequency_bits(data.prior, data.train_counts, data.val_counts),
        }

    def task(self) -> TrainingTask:
        """Return what the loop needs."""
        refiner = self.loss_module.refiner
        optimizer = adamw(refiner, self.config.lr, self.config.weight_decay)
        return TrainingTask(
            trained_modules=(TrainedModule(refiner, self.loss_module, optimizer),),
            num_items=len(self.data.train),
            batch=self.data.code_batch,
            validate=self.validate,
            save_best=self.save_best,
        )

    def validate(self) -> dict[str, float]:
        """In-cluster bits on the validation codes, of all positions and of those with a choice.

        The ranks share the batches.
        """
        ranks, size = self.run.ranks, self.config.micro_batch_of(self.run.ranks.world_size)
        total, num_positions, num_multi_code = 0.0, 0, 0
        with autocast(self.config, ranks.device):
            for labels, codes in self.data.val_code_batches(size, ranks):
                losses, is_multi_code = self.loss_module.losses(labels, codes)
                total += float(losses.double().sum()) / LN2
                num_positions += len(losses)
                num_multi_code += int(is_multi_code.sum())
        bits, positions, open_positions = ranks.all_reduce_sum(total, num_positions, num_multi_code)
        return {
            "objective": bits / positions,
            "in_cluster_bits": bits / positions,
            "in_cluster_bits_where_open": bits / max(1, open_positions),
            "open_positions": open_positions / positions,
            **self.baselines,
        }

    def save_best(self, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics."""
        if self.run.ranks.is_main:
            save_model(self.run.folder / REFINER_FILE, self.loss_module.refiner, self.inputs)
            self.run.write_json("metrics.json", metrics)


def _check(config: RefinerTrainingConfig, data: ClusterData) -> None:
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
