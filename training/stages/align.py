"""Fine-tune a transformer so that its images need no guidance, and half the rows.

::

    masc transformer align training/configs/cifar10/align.toml

The configuration is that of the transformer's training, with ``init``, which is also the frozen
reference. An epoch is enough. Validated are, beside the usual figures, the loss itself, by which
the kept weights are chosen, and how often an image is likelier under its own class than under
another, measured against the reference.
What is written is a transformer run: publishing, evaluation and the refiner take it as one. It is
to be published with a CFG scale of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masc_core.errors import ConfigError
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from training.config import set_threads
from training.data.cluster_data import ClusterData
from training.downloads import local_file
from training.loop.distributed import init_distributed
from training.loop.run_dir import Run
from training.loop.task import Indices, ItemRandomBits
from training.loop.trainer import fit
from training.losses.alignment import AlignmentLoss
from training.stages.configs import AlignConfig
from training.stages.initial_weights import InitialWeights, start_sha256
from training.stages.transformer import TransformerTraining, build_model, gpt_config


def align_transformer(
    config: AlignConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept.

    Raises
    ------
    ConfigError : the transformer was trained over another prior, other classes or codes
    """
    set_threads(config.threads)
    with init_distributed(config.device) as ranks:
        data = ClusterData(config.codes, config.val_codes, config.prior, ranks, config.partitions)
        init = local_file(config.source, report)
        data.inputs["init"] = start_sha256(init)
        initial_weights = InitialWeights.open(
            init, gpt_config(config, data), data.prior, data.inputs
        )
        _check(initial_weights, gpt_config(config, data))
        with Run(config.out, config, data.summary, ranks) as run:
            model, reference = (build_model(config, data, ranks, initial_weights) for _ in range(2))
            reference.requires_grad_(requires_grad=False)
            training = _Alignment(run, config, data, model, reference)
            fit(run, config, training.task(), report)
            return run.read_json("metrics.json")


def _check(weights: InitialWeights, config: GPTConfig) -> None:
    theirs = weights.model.config
    for what, key in (("clusters", "vocab_size"), ("classes", "num_classes")):
        has, wanted = getattr(theirs, key), getattr(config, key)
        if has != wanted:
            raise ConfigError(
                f"init: {weights.path} is for {has} {what}, the codes and the prior have {wanted}; "
                "what is aligned has learned the same before"
            )
    if theirs.num_class_rows != config.num_class_rows:  # the table of the null class is another
        has, needs = ("with", "above 0") if theirs.class_dropout else ("without", "0")
        raise ConfigError(
            f"class_dropout: {weights.path} was trained {has} a null class, so it has to be {needs}"
        )


def alignment_batch(
    data: ClusterData, class_dropout: float, indices: Indices, random_bits: ItemRandomBits
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, a share of them null, labels of images drawn for themselves, and clusters."""
    labels, clusters = data.batch(indices, random_bits)
    others = (random_bits[:, 1] % len(data.train)).astype(np.int64)
    is_dropped = torch.from_numpy(random_bits[:, 2] < class_dropout * 2.0**64)
    labels = labels.masked_fill(is_dropped, data.num_classes)
    return labels, torch.from_numpy(data.train.labels[others]), clusters


class _Alignment(TransformerTraining):
    """Loss and validation of one run."""

    def __init__(
        self, run: Run, config: AlignConfig, data: ClusterData, model: GPT, reference: GPT
    ) -> None:
        self.alignment = AlignmentLoss(model, reference, config.beta, config.negative_weight)
        super().__init__(run, config, data, model)

    def new_loss_module(self, partitions: Sequence[ClusterMap]) -> AlignmentLoss:  # noqa: ARG002 - they have no part in the loss
        if self.compiles_loss:
            self.alignment.compile()
        return self.alignment

    def batch(self, indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, ...]:
        """What the loss module is called with; as `TrainingTask.batch`."""
        return alignment_batch(self.data, self.config.class_dropout, indices, random_bits)

    def validate(self) -> dict[str, float]:
        """The usual figures, and the loss against labels of other images."""
        others = torch.from_numpy(np.random.default_rng(0).permutation(self.data.val.labels))

        def sums_of(part: slice) -> Tensor:
            batch = *self.data.val_batch(part.start, part.stop), others[part]
            labels, clusters, negatives = (tensor.to(self.ranks.device) for tensor in batch)
            found = self.alignment.forward(labels, negatives, clusters)
            means = [found[key] for key in ("loss", "margin", "accuracy")]
            return torch.stack(means).double() * len(labels)

        names = ("objective", "alignment_margin", "alignment_accuracy")
        means = self.val_mean(sums_of).tolist()
        return super().validate() | dict(zip(names, means, strict=True))
