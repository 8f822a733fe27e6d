"""LPIPS: the distance of two images in the features of a VGG16, weighted as people judged.

    d(x, y) = sum over five depths l of  mean over places of  w_l . (f_l(x) - f_l(y))^2

with features f_l of unit length at every place, and weights w_l, one a channel. Nothing in here
learns or differs between training and evaluation.

The weights are files from elsewhere: VGG16's as torchvision stores them (``vgg16-397923af.pth``), w
as LPIPS does (``vgg.pth``), or the same tensors as safetensors. Nothing is unpickled but tensors.

Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric. CVPR 2018.

Shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from masc_core.errors import ArtifactError
from masc_core.io.tensors import read_tensors
from training.torch_file import read_torch_file

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDTHS = tuple(block[-1] for block in VGG16)
MIN_SIZE = 1 << (len(VGG16) - 1)  # pixels a side, or the last pooling leaves nothing

# Of ImageNet's pixels, after they were mapped to [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10


class FeatureDistance(nn.Module):
    """The mean over places of weighted squares of differences of features, summed over depths."""

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) at each depth, of unit length at every place."""
        raise NotImplementedError

    def weights(self) -> Iterable[Tensor | float]:
        """Of each depth, (1, C, 1, 1), or one number for all of its channels."""
        raise NotImplementedError

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances (B,) float32 of images (B, 3, H, W) in [-1, 1] from references.

        The gradient goes to the images alone.
        """
        with torch.no_grad():
            there = self.unit_features(references)
        distance = images.new_zeros(len(images), dtype=torch.float32)
        for here, other, weight in zip(
            self.unit_features(images), there, self.weights(), strict=True
        ):
            distance = distance + ((here - other).square() * weight).sum(1).mean((1, 2))
        return distance


class Lpips(FeatureDistance):
    """The distance, with random weights until `load` gives it those of files."""

    def __init__(self) -> None:
        super().__init__()
        layers, self._depths = _vgg16()
        self.features = nn.Sequential(*layers)
        self.linear = nn.ParameterList(torch.rand(1, width, 1, 1) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False)

    @classmethod
    def load(cls, vgg: Path, linear: Path) -> Lpips:
        """Read both files.

        Parameters
        ----------
        vgg : with ``features.{i}.{weight,bias}``; what else is in it is not looked at
        linear : with ``lin{0..4}.model.1.weight``, each (1, C, 1, 1)

        Raises
        ------
        ArtifactError : a file is missing or damaged, or lacks a tensor of that name and shape
        """
        module = cls()
        state = module.state_dict()
        scales = {f"lin{i}.model.1.weight": f"linear.{i}" for i in range(len(WIDTHS))}
        convolutions = {name: name for name in state if name.startswith("features.")}
        for path, names in ((linear, scales), (vgg, convolutions)):
            tensors = _read(path)
            for name, own in names.items():
                state[own].copy_(_checked(path, tensors, name, state[own].shape))
        return module

    def weights(self) -> Iterable[Tensor]:
        """Of each depth, (1, C, 1, 1)."""
        return self.linear

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) at each depth."""
        x = (images - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._depths:
                found.append(unit_length(x.float()))  # differences of half-precision ones are noise
        return found


def _vgg16() -> tuple[list[nn.Module], frozenset[int]]:
    """Layers numbered as torchvision's, and the numbers of those whose output is compared."""
    layers: list[nn.Module] = []
    depths = []
    width = 3
    for block in VGG16:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for out in block:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        depths.append(len(layers) - 1)
    return layers, frozenset(depths)


def unit_length(features: Tensor) -> Tensor:
    """Features (B, C, H, W) divided by their length at every place."""
    # Unlike sqrt of a sum, this norm has a finite gradient where all channels are zero.
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + EPSILON)


def _read(path: Path) -> Mapping[str, object]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        state = read_torch_file(path)
    except ArtifactError as error:
        raise ArtifactError(path, f"cannot be read as weights: it {error.reason}") from error
    if not isinstance(state, dict):
        raise ArtifactError(path, "holds no named tensors")
    return state


def _checked(path: Path, tensors: Mapping[str, object], name: str, shape: torch.Size) -> Tensor:
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor):
        raise ArtifactError(path, f"the tensor {name} is not in it")
    if tensor.shape != shape:
        raise ArtifactError(
            path, f"the tensor {name} is {tuple(tensor.shape)}, where {tuple(shape)} belongs"
        )
    if not tensor.isfinite().all():
        raise ArtifactError(path, f"the tensor {name} has a NaN or an infinity")
    return tensor
