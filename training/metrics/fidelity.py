"""torch-fidelity, without its downloads and without its pickles.

Its feature extractors and its arithmetic on features are used; reading images, keeping features and
caching are not, since its caches are pickled. Weights are read by `training.torch_file` before
torch-fidelity, which unpickles whatever it is given, sees a copy that was written here.

Precision and recall depend on the features: this project takes Inception's by default, as the ADM
evaluator does, while torch-fidelity's own default is VGG16. Metrics carry the name of the features.

Legend: N images, S pixels a side, F features, C classes of the extractor.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import sha256_file
from masc_core.io.tensors import read_tensors
from training.torch_file import read_torch_file

Kind = Literal["inception", "vgg"]

# What torch-fidelity calls an extractor; its layers for features and, where it has one, for logits.
EXTRACTORS: Mapping[Kind, tuple[str, str, str | None]] = {
    "inception": ("inception-v3-compat", "2048", "logits_unbiased"),
    "vgg": ("vgg16", "fc2_relu", None),
}
FILES: Mapping[Kind, str] = {
    "inception": "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release 0.2.0",
    "vgg": "vgg16-397923af.pth of torchvision",
}
# Operators of torchvision that its wheel on PyPI lacks beside another build of torch. Nothing here
# calls them, but importing torchvision looks for them.
OPERATORS = ("nms", "qnms")

NEIGHBOURS = 3
MIN_IMAGES = NEIGHBOURS + 1  # on either side, for precision and recall
# As many real images as the ADM evaluator's reference has: recall depends on their number, and all
# of ImageNet's distances among each other are out of reach.
MAX_REAL_IMAGES = 10_000
DISTANCES_AT_ONCE = 2_000  # rows against all columns: 0.4 GB for 50,000 images


@cache
def torch_fidelity(module: str = "") -> ModuleType:
    """torch-fidelity or a module of it; a ConfigError where it is not installed."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in OPERATORS:
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
    except ModuleNotFoundError:
        pass  # the next line says what is missing
    try:
        return importlib.import_module(f"torch_fidelity.{module}" if module else "torch_fidelity")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install -e '.[evaluation]'"
        ) from error


class Extractor:
    """Features, and perhaps logits, of images.

    Parameters
    ----------
    label : name that metrics carry
    module : of images uint8 (N, 3, S, S); gives features, then logits if any
    device : where it computes
    weights_sha256 : hash of the file that its weights are from
    has_logits : whether the second are there
    class_names : of the logits, where real images that have these classes are to be classified, too
    """

    def __init__(
        self,
        label: str,
        module: nn.Module,
        device: torch.device,
        weights_sha256: str,
        *,
        has_logits: bool,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.class_names = class_names
        self.label, self.weights_sha256, self.has_logits = label, weights_sha256, has_logits
        self._module, self._device = module.to(device), device

    @property
    def features_name(self) -> str:
        """What the features are called in files; there is more than one classifier."""
        return self.label if self.label in EXTRACTORS else f"{self.label} {self.weights_sha256}"

    @property
    def num_features(self) -> int:
        """F."""
        return self(np.zeros((1, 32, 32, 3), np.uint8))[0].shape[1]

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Features float32 (N, F) and logits float32 (N, C) of uint8 (N, S, S, 3), on the CPU."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device)
        outputs = [part.float().cpu() for part in self._module(images)]
        return outputs[0], outputs[1] if self.has_logits else None


def load_extractor(kind: Kind, weights: Path, device: torch.device) -> Extractor:
    """One of torch-fidelity's extractors, its state dict from a ``.pth`` or ``.safetensors`` file.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, not a plain state dict, or of another network.
    """
    name, layer, logits = EXTRACTORS[kind]
    layers = [layer, logits] if logits else [layer]
    state = _read_state(kind, weights)
    with _own_copy(state) as path:
        try:
            module = create(name, layers, path)
        except (RuntimeError, AttributeError) as error:
            raise ArtifactError(weights, f"holds other weights than {FILES[kind]}") from error
    return Extractor(kind, module, device, sha256_file(weights), has_logits=logits is not None)


def create(name: str, layers: list[str], weights: Path) -> nn.Module:
    """One of torch-fidelity's extractors, on the CPU."""
    return torch_fidelity("utils").create_feature_extractor(
        name, layers, cuda=False, verbose=False, feature_extractor_weights_path=str(weights)
    )


def inception_score(logits: Tensor) -> dict[str, float]:
    """Mean and deviation over ten parts of the shuffled images; logits float32 (N, C)."""
    return torch_fidelity("metric_isc").isc_features_to_metric(logits)


def kernel_distance(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Mean and deviation over 100 subsets of at most 1,000 images; features float32 (N, F)."""
    size = min(1000, len(generated), len(real))
    return torch_fidelity("metric_kid").kid_features_to_metric(
        generated, real, kid_subset_size=size, verbose=False
    )


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Share of images in a ball of the other side's 3 nearest neighbours; float32 (N, F).

    Of more than 10,000 real images that many are taken, evenly spread. A ConfigError where a side
    has no more images than there are neighbours.
    """
    if min(len(generated), len(real)) < MIN_IMAGES:
        raise ConfigError(f"precision and recall need at least {MIN_IMAGES} images on either side")
    if len(real) > MAX_REAL_IMAGES:
        real = real[torch.linspace(0, len(real) - 1, MAX_REAL_IMAGES, dtype=torch.float64).long()]
    metric: dict[str, float] = torch_fidelity("metric_prc").prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=DISTANCES_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return {key: metric[key] for key in ("precision", "recall")}


def _read_state(kind: Kind, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(path, f"is missing; it has to be {FILES[kind]}")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        state = read_torch_file(path)
    except ArtifactError as error:
        raise ArtifactError(path, "is not a file of plain weights") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(path, "is not a file of plain weights")
    return state


@contextmanager
def _own_copy(state: dict[str, Tensor]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(state, path)
        yield path
