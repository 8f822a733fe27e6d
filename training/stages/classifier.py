"""A small residual classifier of the real images, as a judge of the generated ones.

It never sees a generated image in training. Its accuracy on real validation images is the ceiling
of what class agreement can show, and is reported beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.tensors import fill_module, read_header, write_tensors
from training.config import LoopConfig, set_threads
from training.data.images import open_images
from training.data.pixels import TrainingPixels
from training.data.source import require_classes
from training.loop.distributed import join_ranks
from training.loop.run_dir import Run
from training.loop.stage import Indices, Player, Report, Stage, Words, no_report
from training.loop.trainer import fit
from training.metrics.reconstruction import pixels_to_float, to_float

WEIGHTS = "classifier.safetensors"


class ClassifierConfig(LoopConfig):
    """Keys of a classifier run."""

    data: Path = Field(description="training images: class folders, tar shards or parquet files")
    val_data: Path = Field(description="validation images, likewise")
    image_size: int = Field(32, ge=8)
    width: int = Field(32, ge=8, description="channels of the first stage")
    weight_decay: float = Field(0.05, ge=0)


class Classifier(nn.Module):
    """Residual stages, each at half the resolution of the one before, down to 4x4 pixels.

    Parameters
    ----------
    num_classes : classes to tell apart
    image_size : pixels a side, a power of two times 4
    width : channels of the first stage; they double up to eight-fold
    """

    def __init__(self, num_classes: int, image_size: int, width: int) -> None:
        super().__init__()
        self.stem = _unit(3, width, stride=1)
        stages: list[nn.Module] = []
        channels = width
        for i in range(max(1, (image_size // 4).bit_length() - 1)):
            out = width * min(8, 2 << i)
            stages.append(_Stage(channels, out))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, S, S) in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Means of the last channels, (B, F), of images (B, 3, S, S) in [-1, 1]."""
        means: Tensor = self.stages(self.stem(images)).mean(dim=(2, 3))
        return means


class _Stage(nn.Module):
    """Halve the resolution, then one residual convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.reduce = _unit(channels, out, stride=2)
        self.refine = _unit(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2)."""
        x = self.reduce(x)
        out: Tensor = x + self.refine(x)
        return out


def train_classifier(config: ClassifierConfig, report: Report = no_report) -> dict[str, Any]:
    """Run the stage, or continue it; returns the validation metrics of the weights it kept."""
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    data, val_data = open_images(config.data), open_images(config.val_data)
    require_classes(data, "data")
    if val_data.class_names != data.class_names:
        raise ConfigError("val_data: has other classes than data")
    train, val = TrainingPixels(data, config.image_size), val_data.read(config.image_size)
    inputs = {"data": data.fingerprint(), "val_data": val_data.fingerprint()}
    with join_ranks(config.device) as ranks, Run(config.out, config, inputs, ranks) as run:
        model = Classifier(len(data.class_names), config.image_size, config.width)
        model = model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def batch(indices: Indices, words: Words) -> tuple[Tensor, Tensor]:
            pixels, labels = train.take_labelled(indices, words)
            return torch.from_numpy(augment(pixels, words)), torch.from_numpy(labels)

        def validate() -> dict[str, float]:
            accuracy = float((predict(model, val.pixels) == val.labels).mean())
            return {"objective": -accuracy, "accuracy": accuracy}

        def keep(metrics: dict[str, float]) -> None:
            if ranks.is_main:
                header = {"classes": json.dumps(data.class_names)}
                write_tensors(run.folder / WEIGHTS, model.state_dict(), torch.float32, header)
                run.write_json("metrics.json", metrics)

        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        player = Player(model, Recognition(model), optimizer)
        fit(run, config, Stage((player,), len(train), batch, validate, keep), report)
        return run.read_json("metrics.json")


class Recognition(nn.Module):
    """Cross-entropy with a tenth of the target spread over all classes."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of images uint8 (B, S, S, 3) of classes int64 (B,)."""
        logits = self.model(pixels_to_float(pixels)).float()
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=0.1)}


def load_classifier(folder: Path, class_names: tuple[str, ...]) -> Classifier:
    """The classifier of a run's folder, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError
        A file of the run is missing or damaged.
    ConfigError
        It tells other classes apart than ``class_names``, in this order.
    """
    path = folder / WEIGHTS
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        names = json.loads(read_header(path)["classes"])
        model = Classifier(len(names), config["image_size"], config["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(path, f"holds no classifier ({error})") from error
    if tuple(names) != class_names:
        raise ConfigError(f"classifier: {folder} judges other classes than the model has")
    return fill_module(path, model).eval()


def classifier_accuracy(folder: Path) -> float:
    """Share of the real validation images that the classifier of a run's folder is right about.

    Raises
    ------
    ArtifactError
        The run has no metrics.
    """
    path = folder / "metrics.json"
    try:
        return float(json.loads(path.read_text("utf-8"))["accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(path, f"has no accuracy ({error})") from error


@torch.inference_mode()
def predict(
    model: nn.Module, pixels: NDArray[np.uint8], batch_size: int = 250
) -> NDArray[np.int64]:
    """Most probable class, int64 (N,), of images uint8 (N, S, S, 3)."""
    device = next(model.parameters()).device
    batches = [
        model(to_float(pixels[start : start + batch_size]).to(device)).argmax(1).cpu().numpy()
        for start in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(batches)


def augment(pixels: NDArray[np.uint8], words: Words) -> NDArray[np.uint8]:
    """Mirror and shift by up to an eighth, each image by its words; uint8 (B, S, S, 3) both."""
    size = pixels.shape[1]
    border = size // 8
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border), (0, 0)), mode="reflect")
    mirror = (words[:, 0] >> np.uint64(63)) == 1
    padded[mirror] = padded[mirror, :, ::-1]
    tops, lefts = (words[:, 1:3] % np.uint64(2 * border + 1)).astype(np.int64).T
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    chosen = windows[np.arange(len(pixels)), tops, lefts]  # (B, 3, S, S)
    return np.ascontiguousarray(chosen.transpose(0, 2, 3, 1))


def _unit(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )
