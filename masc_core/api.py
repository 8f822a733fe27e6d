"""A published model for programs and notebooks: generate, encode, decode, look at its codebook.

::

    import masc_core as masc

    model = masc.load_model("models/cifar10")
    made = model.generate("ship", num_images=4)
    prior = masc.build_tree(model.codebook).cut(256)

Legend: N images, S pixels a side, L positions, V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from masc_core.arrays import FloatArray, IntArray
from masc_core.bundle.manifest import MANIFEST_FILE, Manifest
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ArtifactError, ConfigError, InvalidFieldError, UnknownClassError
from masc_core.escapes import quoted
from masc_core.generation.generate import generate
from masc_core.images import Pixels, center_crop, to_rgb, upright
from masc_core.models.vq import pixels_to_float
from masc_core.prior import ClusterMap
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.params import SamplingParams, check_given, image_seed
from masc_core.settings import expand_path

BATCH = 16  # images at once
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Generation:
    """What `Model.generate` made."""

    images: Pixels  # uint8 (N, S, S, 3), RGB
    codes: IntArray  # int64 (N, L) in [0, V), raster order; of a 1-D tokenizer coarse to fine
    clusters: IntArray  # int64 (N, L) in [0, K), what the transformer predicted
    entropies: npt.NDArray[np.float32]  # (N, L), bits; guided, before temperature and filters
    cluster_entropies: npt.NDArray[np.float32]  # of the partition's clusters; (N, 0) without one
    params: tuple[SamplingParams, ...]  # of each image, its class and seed among them


def load_model(
    folder: str | PathLike[str],
    version: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Model:
    """Verify and load a model.

    Parameters
    ----------
    folder : of a model, such as ``models/cifar10``, or of one version of it
    version : of the model; the active one by default
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    dtype : of the transformer, ``auto``, ``float32`` or ``bfloat16``

    Raises
    ------
    ArtifactError : a file is missing or damaged, or no version is active; names it
    UnknownModelError : there is no such model or version
    ConfigError : this machine has no such device
    """
    path = expand_path(Path(folder)).absolute()
    if not path.is_dir():
        raise ArtifactError(path, "is no folder of a model")
    if version is not None or not (path / MANIFEST_FILE).is_file():
        path = Registry(path.parent).path(path.name, version)
    chosen = resolve_device(device)
    return Model(load_bundle(path, chosen, choose_dtype(dtype, chosen)))


class Model:
    """A model that is loaded, as `load_model` returns it.

    Attributes
    ----------
    bundle : its parts: transformer, tokenizer, sampler of codes
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    def manifest(self) -> Manifest:
        """Sizes, class names, defaults, where it comes from, and what was measured."""
        return self.bundle.manifest

    @property
    def prior(self) -> ClusterMap:
        """The cluster of each of the V codes."""
        return self.bundle.code_sampler.prior

    @property
    def codebook(self) -> FloatArray:
        """Rows float64 (V, E) as the decoder takes them, of length 1 where the model says so."""
        return self.bundle.tokenizer.quantize.codebook().detach().cpu().double().numpy()

    @property
    def has_encoder(self) -> bool:
        """Whether `encode` is possible."""
        return hasattr(self.bundle.tokenizer, "encoder")

    def generate(  # noqa: PLR0913 - the fields of a request
        self,
        classes: str | int | Sequence[str | int] = (),
        num_images: int = 1,
        seed: int = 0,
        *,
        cfg_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        decoding: str | None = None,
        cfg_schedule: CFGSchedule | None = None,
        cfg_start: float | None = None,
        code_temperature: float | None = None,
        code_top_k: int | None = None,
        code_cfg_scale: float | None = None,
        cluster_top_k: int | None = None,
        cluster_top_p: float | None = None,
    ) -> Generation:
        """Generate images: the pixels that the service answers with.

        Parameters
        ----------
        classes : names or ids, one or several; all of them by default
        num_images : of each class, at least one
        seed : image i of a class uses ``seed + i``
        cfg_scale, temperature, top_k, top_p, decoding, cfg_schedule, cfg_start, code_temperature,
        code_top_k, code_cfg_scale, cluster_top_k, cluster_top_p : as of a request; None is the
            model's own

        Raises
        ------
        UnknownClassError, InvalidFieldError : the model has no such class or setting
        NonFiniteError : the model produced a NaN or an infinity
        """
        settings = {
            "cfg_scale": cfg_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "decoding": decoding,
            "cfg_schedule": cfg_schedule,
            "cfg_start": cfg_start,
            "code_temperature": code_temperature,
            "code_top_k": code_top_k,
            "code_cfg_scale": code_cfg_scale,
            "cluster_top_k": cluster_top_k,
            "cluster_top_p": cluster_top_p,
        }
        several = (classes,) if isinstance(classes, str | int | np.integer) else tuple(classes)
        params = params_of(self.manifest, several, num_images, seed, settings)
        parts = [
            generate(
                self.bundle.transformer, self.bundle.code_sampler, params[start : start + BATCH]
            )
            for start in range(0, len(params), BATCH)
        ]
        codes = torch.cat([part.codes for part in parts])
        return Generation(
            images=self.bundle.render(codes),
            codes=codes.cpu().numpy(),
            clusters=torch.cat([part.clusters for part in parts]).cpu().numpy(),
            entropies=torch.cat([part.entropies for part in parts]).cpu().numpy(),
            cluster_entropies=torch.cat([part.cluster_entropies for part in parts]).cpu().numpy(),
            params=tuple(params),
        )

    @torch.inference_mode()
    def encode(self, images: Pixels | Sequence[Image.Image]) -> IntArray:
        """Codes int64 (N, L) of images.

        Parameters
        ----------
        images : uint8 (N, S, S, 3), or Pillow's, of which the middle square counts: upright, as
            their EXIF says, and on white

        Raises
        ------
        ConfigError : the model was published without its encoder
        ValueError : an array of another shape or type
        """
        tokenizer, size = self.bundle.tokenizer, self.manifest.image_size
        if not self.has_encoder:
            name = f"{self.manifest.name} {self.manifest.version}"
            raise ConfigError(f"{name} was published without its encoder")
        if not isinstance(images, np.ndarray):
            squares = [center_crop(to_rgb(upright(image), WHITE), size) for image in images]
            images = np.array(squares, np.uint8).reshape(-1, size, size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images are uint8 (N, {size}, {size}, 3), got {images.dtype} {images.shape}"
            )
        codes = [np.empty((0, self.manifest.num_positions), np.int64)]
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH].copy()).to(self.bundle.device)
            codes.append(tokenizer.encode(pixels_to_float(pixels)).codes.cpu().numpy())
        return np.concatenate(codes)

    def decode(self, codes: npt.ArrayLike) -> Pixels:
        """Images uint8 (N, S, S, 3) of codes (N, L); a code outside [0, V) raises ValueError."""
        array = np.asarray(codes)
        length, size = self.manifest.num_positions, self.manifest.image_size
        if array.ndim != 2 or array.shape[1] != length:
            raise ValueError(f"codes are (N, {length}), got {array.shape}")
        self.prior.encode(array)  # raises for what is no code
        if not len(array):
            return np.empty((0, size, size, 3), np.uint8)
        return self.bundle.render(torch.from_numpy(array.astype(np.int64)))


def params_of(
    manifest: Manifest,
    classes: Sequence[str | int],
    num_images: int,
    seed: int,
    settings: Mapping[str, float | str | None],
) -> list[SamplingParams]:
    """Sampling parameters of each image, class by class; a setting that is None is the model's own.

    Raises
    ------
    UnknownClassError, InvalidFieldError : the model has no such class or setting
    """
    if num_images < 1:
        raise InvalidFieldError("num_images", f"num_images must be 1 or more, got {num_images}")
    given = {name: value for name, value in settings.items() if value is not None}
    shared: dict[str, Any] = dict(manifest.defaults) | given
    check_given(given, shared["cfg_schedule"], shared["decoding"])
    base = SamplingParams(class_id=0, seed=seed, **shared)
    return [
        replace(base, class_id=find_class(name, manifest), seed=image_seed(seed, i))
        for name in classes or range(len(manifest.class_names))
        for i in range(num_images)
    ]


def find_class(name: str | int, manifest: Manifest) -> int:
    """Class id of a name, or of an id that is no name.

    Raises
    ------
    UnknownClassError : there is none
    InvalidFieldError : several classes are called so
    """
    name = str(name)
    ids = manifest.class_ids(name)
    if len(ids) > 1:
        raise InvalidFieldError("class", f"several classes are called {quoted(name)}: ids {ids}")
    if ids:
        return ids[0]
    if (
        name.isascii()
        and name.isdecimal()
        and len(name) < 10
        and int(name) < len(manifest.class_names)
    ):
        return int(name)
    raise UnknownClassError(
        "class", f"no class {quoted(name)}; there are: {', '.join(manifest.class_names)}"
    )
