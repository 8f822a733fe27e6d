"""Train the completer, which draws all codes of an image at once, given all of its clusters.

::

    masc completer train training/configs/imagenet256/completer-masc-512.toml

It learns from the clusters of true codes and knows nothing of a transformer: one serves all that
predict the clusters of its prior. Reported are the bits that naming the code within its cluster
costs on validation images, beside what uniform and frequency decoding cost.
Writes ``completer.safetensors`` and ``metrics.json``.
"""

from __future__ import annotations

from typing import Any

import torch

from masc_core.bundle.manifest import COMPLETER_FILE
from masc_core.errors import ConfigError
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.weights import save_model
from masc_core.progress import ProgressCallback, no_progress
from training.config import set_threads
from training.data.cluster_data import ClusterData
from training.loop.distributed import init_distributed
from training.loop.optimizer import adamw
from training.loop.run_dir import Run
from training.loop.task import TrainedModule, TrainingTask
from training.loop.trainer import autocast, fit
from training.losses.completer import CompletionLoss
from training.metrics.cluster_bits import frequency_bits
from training.stages.configs import CompleterTrainingConfig
from training.stages.transformer import block_sizes


def train_completer(
    config: CompleterTrainingConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept.

    Raises
    ------
    ConfigError : codes, prior and siblings do not belong together, or there is nothing to complete
    """
    set_threads(config.threads)
    with init_distributed(config.device) as ranks:
        sibling_paths = () if config.siblings is None else (config.siblings,)
        data = ClusterData(config.codes, config.val_codes, config.prior, ranks, sibling_paths)
        if data.prior.num_clusters == data.prior.num_codes:
            raise ConfigError("prior: every cluster has one code, there is nothing to complete")
        with Run(config.out, config, data.summary, ranks) as run:
            torch.manual_seed(config.seed)
            completer = Completer(completer_config(config, data)).to(ranks.device)
            siblings = data.partitions[0].over(data.prior) if data.partitions else None
            loss_module = CompletionLoss(completer, data.prior, siblings, config.corruption)
            fit(run, config, _CompleterTraining(run, config, data, loss_module).task(), report)
            return run.read_json("metrics.json")


def completer_config(config: CompleterTrainingConfig, data: ClusterData) -> CompleterConfig:
    """Sizes of the model that fits the data."""
    return CompleterConfig(
        vocab_size=data.prior.num_codes,
        num_clusters=data.prior.num_clusters,
        softmax=config.softmax,
        input_rows=config.input_rows,
        **block_sizes(config, data),
    )


class _CompleterTraining:
    """Validation of one run, and what it keeps."""

    def __init__(
        self,
        run: Run,
        config: CompleterTrainingConfig,
        data: ClusterData,
        loss_module: CompletionLoss,
    ) -> None:
        self.run, self.config, self.data, self.loss_module = run, config, data, loss_module
        prior, counts = data.prior, data.val_counts
        has_choice = prior.sizes[prior.labels] > 1
        self.baselines = {
            "open_positions": float(counts[has_choice].sum() / counts.sum()),
            "uniform_bits": data.uniform_bits(),
            "frequency_bits": frequency_bits(prior, data.train_counts, counts),
        }

    def task(self) -> TrainingTask:
        """Return what the loop needs."""
        completer = self.loss_module.completer
        optimizer = adamw(completer, self.config.lr, self.config.weight_decay)
        return TrainingTask(
            trained_modules=(TrainedModule(completer, self.loss_module, optimizer),),
            num_items=len(self.data.train),
            batch=self.data.code_batch,
            validate=self.validate,
            save_best=self.save_best,
        )

    def validate(self) -> dict[str, float]:
        """Bits a code on the validation images; the ranks share the batches."""
        ranks, size = self.run.ranks, self.config.micro_batch_of(self.run.ranks.world_size)
        sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        with autocast(self.config, ranks.device):
            for labels, codes in self.data.val_code_batches(size, ranks):
                sums += self.loss_module.bits(labels, codes).double() * len(codes)
        total = ranks.all_reduce_mean(sums) * ranks.world_size
        own, in_cluster = (total / len(self.data.val)).tolist()
        return {
            "objective": own,
            "bits_per_code": own,  # where the softmax is over all codes, more than within clusters
            "in_cluster_bits": in_cluster,
            **self.baselines,
        }

    def save_best(self, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics."""
        if self.run.ranks.is_main:
            completer, inputs = self.loss_module.completer, self.data.inputs
            save_model(self.run.folder / COMPLETER_FILE, completer, inputs)
            self.run.write_json("metrics.json", metrics)
