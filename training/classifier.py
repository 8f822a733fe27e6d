"""A small residual classifier of the real images, as a judge of the generated ones.

It never sees a generated image in training. Its accuracy on real validation images is the ceiling
of what class agreement can show, and is reported beside it.
This module does not know where generated images come from.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masc_core.device import resolve_device
from masc_core.errors import ArtifactError, ConfigError
from masc_core.files import atomic_path
from masc_core.tensors import read_header
from training.config import LoopConfig, set_threads
from training.images import ImageFolder
from training.loop import Report, Stage, fit, no_report
from training.reconstruction import to_float
from training.run import Run

WEIGHTS = "classifier.safetensors"


class ClassifierConfig(LoopConfig):
    """Keys of a classifier run."""

    data: Path = Field(description="folder-per-class training images")
    val_data: Path = Field(description="folder-per-class validation images")
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
        logits: Tensor = self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))
        return logits


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
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    data, val_data = ImageFolder.scan(config.data), ImageFolder.scan(config.val_data)
    train, val = data.read(config.image_size), val_data.read(config.image_size)
    inputs = {"data": data.fingerprint(), "val_data": val_data.fingerprint()}
    if val.class_names != train.class_names:
        raise ConfigError("val_data: has other classes than data")
    with Run(config.out, config, inputs) as run:
        model = Classifier(len(train.class_names), config.image_size, config.width).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(indices: Tensor) -> dict[str, Tensor]:
            images = augment(to_float(train.pixels[indices.numpy()])).to(device)
            targets = torch.from_numpy(train.labels[indices.numpy()]).to(device)
            return {"loss": F.cross_entropy(model(images).float(), targets, label_smoothing=0.1)}

        def validate() -> dict[str, float]:
            accuracy = float((predict(model, val.pixels) == val.labels).mean())
            return {"objective": -accuracy, "accuracy": accuracy}

        def keep(metrics: dict[str, float]) -> None:
            with atomic_path(run.folder / WEIGHTS) as temporary:
                state = {k: v.contiguous() for k, v in model.state_dict().items()}
                save_file(state, temporary, metadata={"classes": json.dumps(train.class_names)})
            run.write_json("metrics.json", metrics)

        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        fit(run, config, Stage(model, optimizer, len(train.labels), loss, validate, keep), report)
        return run.read_json("metrics.json")


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
        model.load_state_dict(load_file(path))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(path, f"holds no classifier ({error})") from error
    if tuple(names) != class_names:
        raise ConfigError(f"classifier: {folder} judges other classes than the model has")
    return model.eval()


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


def augment(images: Tensor) -> Tensor:
    """Mirror and shift by up to an eighth, each image by itself; (B, 3, S, S) in and out."""
    count, _, size, _ = images.shape
    border = size // 8
    padded = F.pad(images, (border,) * 4, mode="reflect")
    mirror = torch.rand(count, 1, 1, 1) < 0.5
    padded = torch.where(mirror, padded.flip(3), padded)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (B, 3, 2b+1, 2b+1, S, S)
    tops, lefts = torch.randint(2 * border + 1, (2, count))
    return windows[torch.arange(count), :, tops, lefts]


def _unit(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )
