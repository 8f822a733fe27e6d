"""Train the transformer on clusters, or on codes with losses of their clusters as well.

::

    masc transformer train training/configs/cifar10/transformer.toml
    torchrun --nproc-per-node 8 -m masc transformer train \
        training/configs/imagenet256/llamagen-l-masc.toml
    masc transformer train training/configs/imagenet256/iar-b-masc.toml

LlamaGen's recipe: AdamW, dropout, a share of the labels dropped for guidance. The rate falls as a
cosine to ``min_lr_ratio`` of its peak, which at 1 is constant, as LlamaGen's is; ``schedule =
"wsd"`` is GigaTok's.
Under torchrun every rank holds the whole model (DDP) or a part of it (``parallel = "fsdp"``).
Writes ``transformer.safetensors``, the partitions of its loss as ``partition-<clusters>.npz``,
``metrics.json`` and, at the epochs asked for, ``sheets/`` and ``epochs/``, whose folders publishing
and evaluation take as they take the run's.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masc_core.bundle.manifest import TRANSFORMER_FILE, partition_file
from masc_core.errors import ConfigError
from masc_core.io.files import write_json
from masc_core.io.tensors import without_memory
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.weights import save_model
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from training.config import set_threads
from training.data.cluster_data import ClusterData
from training.downloads import local_file
from training.loop.distributed import Ranks, init_distributed
from training.loop.optimizer import adamw
from training.loop.parallel import (
    checkpoint_activations,
    compile_each,
    full_state_dict,
    is_sharded,
    shard,
)
from training.loop.run_dir import Run
from training.loop.task import Indices, ItemRandomBits, TrainedModule, TrainingTask
from training.loop.trainer import autocast, fit, trains_in_bfloat16
from training.losses.transformer import (
    ClusterLevel,
    LinearNextClusterLoss,
    NextClusterLoss,
    cross_entropy_and_entropy,
)
from training.metrics.cluster_levels import NUM_SUMS, ClusterLevelMetrics
from training.metrics.step_cost import flops_per_image, peak_flops
from training.stages.configs import CompleterTrainingConfig, TransformerTrainingConfig
from training.stages.initial_weights import InitialWeights, start_sha256
from training.stages.sample_sheets import Sheets

EPOCHS = "epochs"  # folder of the weights that are kept


def gpt_config(config: TransformerTrainingConfig, data: ClusterData) -> GPTConfig:
    """Sizes of the model that fits the data."""
    return GPTConfig(vocab_size=data.prior.num_clusters, **block_sizes(config, data))


def block_sizes(
    config: TransformerTrainingConfig | CompleterTrainingConfig, data: ClusterData
) -> dict[str, Any]:
    """Sizes of a `GPTConfig` but for its vocabulary, which a completer has, too."""
    return {
        "dim": config.dim,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "num_classes": data.num_classes,
        "block_size": data.num_positions,
        "token_dropout": config.token_dropout,
        "resid_dropout": config.resid_dropout,
        "ffn_dropout": config.ffn_dropout,
        "class_dropout": config.class_dropout,
        "positions": config.positions,
    }


def train_transformer(
    config: TransformerTrainingConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    with init_distributed(config.device) as ranks:
        data = ClusterData(config.codes, config.val_codes, config.prior, ranks, config.partitions)
        initial_weights = None
        if config.init is not None:
            init = local_file(config.init, report)
            data.inputs["init"] = start_sha256(init)
            initial_weights = InitialWeights.open(
                init, gpt_config(config, data), data.prior, data.inputs
            )
        with Run(config.out, config, data.summary, ranks) as run:
            model = build_model(config, data, ranks, initial_weights)
            fit(run, config, TransformerTraining(run, config, data, model).task(), report)
            return run.read_json("metrics.json")


def build_model(
    config: TransformerTrainingConfig,
    data: ClusterData,
    ranks: Ranks,
    initial_weights: InitialWeights | None,
) -> GPT:
    """The model as training begins with it, on the rank's device, in parts if so configured."""
    if config.compile:
        require_compiler(ranks.device)
    torch.manual_seed(config.seed)
    model = GPT(gpt_config(config, data))
    if initial_weights is not None:
        initial_weights.fill(model, data.prior, data.train_counts)
    model = model.to(ranks.device)
    is_shared = config.parallel == "fsdp" and ranks.world_size > 1
    if config.compile and is_shared:
        compile_each(model.blocks)
    if config.checkpoint_activations:
        checkpoint_activations(model.blocks)
    if is_shared:
        shard_blocks(model, ranks, bfloat16=trains_in_bfloat16(config, ranks.device))
    return model


def shard_blocks(model: GPT, ranks: Ranks, *, bfloat16: bool) -> None:
    """Split a model over the ranks, in place; ``bfloat16`` as for `shard`."""
    # The loss module calls `hidden`.
    shard(model, model.blocks, ranks, bfloat16=bfloat16, methods=["hidden"])


def loss_module_of(model: GPT, levels: Sequence[ClusterLevel] = (), *, compiled: bool) -> nn.Module:
    """What is minimised; compiled as a whole, loss and all, or in chunks of positions."""
    if levels or not compiled:
        return LinearNextClusterLoss(model, levels, compiled=compiled)
    loss_module = NextClusterLoss(model)
    loss_module.compile()
    return loss_module


class TransformerTraining:
    """Loss and validation of one run."""

    def __init__(
        self, run: Run, config: TransformerTrainingConfig, data: ClusterData, model: GPT
    ) -> None:
        self.run, self.config, self.data, self.model = run, config, data, model
        self.ranks = run.ranks
        partitions = [partition.over(data.prior) for partition in data.partitions]
        self.loss_module = self.new_loss_module(partitions)
        self.levels = [ClusterLevelMetrics(level, self.ranks.device) for level in partitions]
        self.unigram_bits, self.uniform_bits = data.unigram_bits(), data.uniform_bits()
        self.peak = peak_flops(self.ranks.device, config.peak_tflops)
        self.sheets = _sheets(config, data)

    @property
    def compiles_loss(self) -> bool:
        """Whether model and loss are compiled together.

        Validation calls the model, for its last batch has another shape, and its share of a run is
        small.
        """
        return self.config.compile and not is_sharded(self.model)

    def new_loss_module(self, partitions: Sequence[ClusterMap]) -> nn.Module:
        """What is minimised; partitions are over the vocabulary."""
        weights = self.config.partition_weights or (1.0,) * len(partitions)
        levels = [ClusterLevel(*pair) for pair in zip(partitions, weights, strict=True)]
        return loss_module_of(self.model, levels, compiled=self.compiles_loss)

    def batch(self, indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, ...]:
        """What the loss module is called with; as `TrainingTask.batch`."""
        return self.data.batch(indices, random_bits)

    def task(self) -> TrainingTask:
        """Return what the loop needs."""
        optimizer = adamw(self.model, self.config.lr, self.config.weight_decay)
        return TrainingTask(
            trained_modules=(TrainedModule(self.model, self.loss_module, optimizer),),
            num_items=len(self.data.train),
            batch=self.batch,
            validate=self.validate,
            save_best=self.save_best,
            after_epoch=self.after_epoch,
            extra_metrics=self.extra_metrics,
        )

    def validate(self) -> dict[str, float]:
        """Teacher-forced bits a position on the validation codes; the ranks share the batches."""
        sums = self.val_mean(self.sums) / self.data.num_positions
        bits, entropy = sums[:2].tolist()
        largest = math.log2(max(2, self.data.prior.num_clusters))
        metrics = {
            "objective": bits,
            "bits_per_position": bits,
            "fine_bits_per_position": bits + self.uniform_bits,
            "teacher_forced_entropy_bits": entropy,
            "teacher_forced_entropy_ratio": entropy / largest,
            "unigram_bits": self.unigram_bits,
        }
        for level, means in zip(
            self.levels, sums[2:].view(len(self.levels), NUM_SUMS), strict=True
        ):
            metrics |= level.metrics(means)
        return metrics

    def val_mean(self, sums_of: Callable[[slice], Tensor]) -> Tensor:
        """Mean over the validation images of sums, float64, over a part of them."""
        size, count = self.config.micro_batch_of(self.ranks.world_size), len(self.data.val)
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        with torch.no_grad(), autocast(self.config, self.ranks.device):
            for base in range(0, count, size * self.ranks.world_size):
                start = base + size * self.ranks.rank
                # All ranks take part in gathering a sharded model: one without images repeats some.
                first = start % count
                total = total + sums_of(slice(first, first + size)) * (start < count)
        return self.ranks.all_reduce_mean(total) * self.ranks.world_size / count

    def sums(self, part: slice) -> Tensor:
        """Sums over the positions of images: cross-entropy, entropy, those of each level."""
        labels, clusters = self.data.val_batch(part.start, part.stop)
        clusters = clusters.to(self.ranks.device)
        logits = self.model(labels.to(self.ranks.device), clusters[:, :-1])
        found = cross_entropy_and_entropy(logits, clusters)
        own = torch.stack([found.cross_entropy, found.entropy]).double()
        return torch.cat([own, *(level.sums(logits, clusters) for level in self.levels)])

    def save_best(self, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics."""
        self.save(self.run.folder, metrics)

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        """Write the weights and their metrics into a folder; collective, call on every rank."""
        model = self.gathered(torch.device("cpu"))
        if model is not None:
            for partition in self.data.partitions:
                partition.save(folder / partition_file(partition.num_clusters))
            save_model(folder / TRANSFORMER_FILE, model, self.data.inputs)
            write_json(folder / "metrics.json", metrics)

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the weights and draw a sheet when it is time."""
        if self.config.keep_every and epoch % self.config.keep_every == 0:
            folder = self.run.folder / EPOCHS / f"{epoch:04d}"
            if self.ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "config.json", self.run.config)
            self.save(folder, metrics)
        if self.sheets is None or epoch not in self.config.sheet_epochs:
            return
        model = self.gathered(self.ranks.device)
        if model is not None:
            self.sheets.draw(model, self.run.folder / "sheets" / f"epoch-{epoch:04d}.png")

    def gathered(self, device: torch.device) -> GPT | None:
        """The whole model on the main rank, in evaluation mode; collective, call on every rank."""
        state = full_state_dict(self.model, device, self.ranks)
        if state is None:
            return None
        with without_memory():
            copy = GPT(self.model.config)
        copy.to_empty(device=device)
        copy.load_state_dict(state)
        return copy.eval()

    def extra_metrics(self, images_per_second: float) -> dict[str, float]:
        """MFU of all devices together, where their peak is known."""
        if self.peak is None:
            return {}
        done = flops_per_image(self.model.config) * images_per_second
        return {"mfu": done / (self.peak * self.ranks.world_size)}


def _sheets(config: TransformerTrainingConfig, data: ClusterData) -> Sheets | None:
    if not config.sheet_epochs:
        return None
    if config.sheet_tokenizer is None:
        raise ConfigError("sheet_tokenizer: is needed for sheet_epochs")
    return Sheets(config.sheet_tokenizer, data.prior, data.train.index.class_names)


def require_compiler(device: torch.device) -> None:
    """Raise a `ConfigError` where torch.compile cannot work: it calls a compiler of C or C++."""
    variable, usual = ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    command = shlex.split(os.environ.get(variable, usual)) or [usual]
    if not shutil.which(command[0]):
        raise ConfigError(f"compile: needs a compiler; install {usual}, or pass --no-compile")
