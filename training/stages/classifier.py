"""A small residual classifier of the real images, as a judge of the generated ones.

It never sees a generated image in training. Its accuracy on real validation images is the ceiling
of what class agreement can show, and is reported beside it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from masc_core.errors import ArtifactError
from masc_core.io.tensors import write_tensors
from masc_core.models.vq import pixels_to_float
from masc_core.progress import ProgressCallback, no_progress
from training.changes import require_same_classes
from training.config import set_threads
from training.data.images import open_images
from training.data.pixels import TrainingPixels
from training.data.source import LabelledImages, require_classes
from training.loop.distributed import init_distributed
from training.loop.run_dir import Run
from training.loop.task import Indices, ItemRandomBits, TrainedModule, TrainingTask
from training.loop.trainer import fit
from training.metrics.classifier import CLASSIFIER_FILE, Classifier, predict
from training.stages.configs import ClassifierConfig


def train_classifier(
    config: ClassifierConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    data, val_data = open_images(config.data, config), open_images(config.val_data, config)
    require_classes(data, "data")
    require_same_classes(
        "val_data", config.val_data, val_data.class_names, config.data, data.class_names
    )
    train = TrainingPixels(data, config.image_size)
    inputs = {"data": data.summary(), "val_data": val_data.summary()}
    with init_distributed(config.device) as ranks, Run(config.out, config, inputs, ranks) as run:
        share = np.arange(len(val_data))[ranks.rank :: ranks.world_size]
        val = val_data.read(config.image_size, share)
        if not ranks.any(len(val.labels) > 0):
            reason = f"none of its images can be read, first {val_data.why_unreadable(0)}"
            raise ArtifactError(val_data.root, reason)
        model = Classifier(len(data.class_names), config.image_size, config.width)
        model = model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def batch(indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, Tensor]:
            pixels, labels = train.take_labelled(indices, random_bits)
            return torch.from_numpy(augment(pixels, random_bits)), torch.from_numpy(labels)

        def validate() -> dict[str, float]:
            for statistics in model.buffers():  # each rank's own since the last forward pass
                ranks.broadcast(statistics)
            right, total = ranks.all_reduce_sum(num_right(model, val), len(val.labels))
            accuracy = right / total
            return {"objective": -accuracy, "accuracy": accuracy}

        def save_best(metrics: dict[str, float]) -> None:
            if ranks.is_main:
                header = {"classes": json.dumps(data.class_names)}
                write_tensors(
                    run.folder / CLASSIFIER_FILE, model.state_dict(), torch.float32, header
                )
                run.write_json("metrics.json", metrics)

        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        trained = TrainedModule(model, ClassifierLoss(model), optimizer)
        fit(run, config, TrainingTask((trained,), len(train), batch, validate, save_best), report)
        return run.read_json("metrics.json")


class ClassifierLoss(nn.Module):
    """Cross-entropy with a tenth of the target spread over all classes."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of images uint8 (B, S, S, 3) of classes int64 (B,)."""
        logits = self.model(pixels_to_float(pixels)).float()
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=0.1)}


def num_right(model: Classifier, images: LabelledImages) -> int:
    """How many images, possibly none, are put into their class."""
    if not len(images.labels):
        return 0
    return int((predict(model, images.pixels) == images.labels).sum())


def augment(pixels: NDArray[np.uint8], random_bits: ItemRandomBits) -> NDArray[np.uint8]:
    """Mirror and shift by up to an eighth, each image by its bits; uint8 (B, S, S, 3) both."""
    size = pixels.shape[1]
    border = size // 8
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border), (0, 0)), mode="reflect")
    mirror = (random_bits[:, 0] >> np.uint64(63)) == 1
    padded[mirror] = padded[mirror, :, ::-1]
    tops, lefts = (random_bits[:, 1:3] % np.uint64(2 * border + 1)).astype(np.int64).T
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    chosen = windows[np.arange(len(pixels)), tops, lefts]  # (B, 3, S, S)
    return np.ascontiguousarray(chosen.transpose(0, 2, 3, 1))
