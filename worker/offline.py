"""Images to files without a queue: the engine's oracle, run from the command line.

The same request gives the same pixels as the service does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masc_core.bundle.manifest import Defaults, Manifest
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ConfigError, InvalidFieldError, UnknownClassError
from masc_core.escapes import quoted
from masc_core.generation.generate import generate
from masc_core.images import ImageFormat, Pixels, contact_sheet, encode_image
from masc_core.io.files import atomic_write
from masc_core.sampling.params import SamplingParams
from worker.settings import WorkerSettings

FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
BATCH = 16


@dataclass(frozen=True, slots=True)
class OfflineRequest:
    """What to make; None takes the model's default.

    ``classes`` are names or ids, every class if empty; image i of a class uses ``seed + i``.
    """

    classes: tuple[str, ...] = ()
    num_images: int = 1
    seed: int = 0
    cfg_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    decoding: str | None = None
    cfg_schedule: str | None = None
    cfg_start: float | None = None


def generate_files(
    settings: WorkerSettings, request: OfflineRequest, out: Path, *, scale: int, columns: int
) -> list[Path]:
    """Generate, and write an image, a captioned sheet, or a folder of images.

    Parameters
    ----------
    out : with the suffix of an image one file, otherwise a folder
    scale : every pixel becomes ``scale`` x ``scale``
    columns : images a row of a sheet

    Raises
    ------
    ConfigError : the file cannot be written, or its suffix is no image format
    UnknownClassError, InvalidFieldError : the model has no such class or setting
    """
    if out.suffix and out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: not an image format; there are {', '.join(FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    device = resolve_device(settings.device)
    models = Registry(settings.models_dir)
    folder = models.path(models.default(settings.default_model))
    bundle = load_bundle(folder, device, choose_dtype(settings.dtype, device))
    params_list = params_of_request(request, bundle.manifest)
    pixels = _pixels(bundle, params_list).repeat(scale, axis=1).repeat(scale, axis=2)
    captions = [bundle.manifest.class_names[params.class_id] for params in params_list]
    descriptions = [""] * len(pixels)
    if settings.image_metadata:
        descriptions = [bundle.manifest.describe_image(params) for params in params_list]
    try:
        if not out.suffix:
            out.mkdir(parents=True, exist_ok=True)
            names = [
                f"{params.class_id:03d}-{caption.replace('/', '-')}-{params.seed}.png"
                for params, caption in zip(params_list, captions, strict=True)
            ]
            for name, image, description in zip(names, pixels, descriptions, strict=True):
                atomic_write(out / name, encode_image(image, "png", description))
            return [out / name for name in names]
        sheet, description = pixels[0], descriptions[0]
        if len(pixels) > 1:
            sheet = np.asarray(contact_sheet(list(pixels), columns, captions=captions))
            description = ""  # a sheet is of many
        atomic_write(out, encode_image(sheet, FORMATS[out.suffix.lower()], description))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
    return [out]


def params_of_request(request: OfflineRequest, manifest: Manifest) -> list[SamplingParams]:
    """One params an image: the request over the model's defaults."""
    given = {
        name: value
        for name in Defaults.model_fields
        if (value := getattr(request, name)) is not None
    }
    base = SamplingParams(class_id=0, seed=request.seed, **{**dict(manifest.defaults), **given})
    classes = request.classes or tuple(map(str, range(len(manifest.class_names))))
    return [
        replace(base, class_id=find_class(name, manifest), seed=(request.seed + i) % 2**63)
        for name in classes
        for i in range(request.num_images)
    ]


def find_class(name: str, manifest: Manifest) -> int:
    """Class id of a name, or of an id in digits that is no name.

    Raises
    ------
    UnknownClassError : there is none
    InvalidFieldError : several classes are called so
    """
    ids = manifest.class_ids(name)
    if len(ids) > 1:
        raise InvalidFieldError("class", f"several classes are called {quoted(name)}: ids {ids}")
    if ids:
        return ids[0]
    if name.isdecimal() and int(name) < len(manifest.class_names):
        return int(name)
    raise UnknownClassError(
        "class", f"no class {quoted(name)}; there are: {', '.join(manifest.class_names)}"
    )


def _pixels(bundle: Bundle, params_list: list[SamplingParams]) -> Pixels:
    batches = (params_list[start : start + BATCH] for start in range(0, len(params_list), BATCH))
    codes = (generate(bundle.model, bundle.decoder, batch).codes for batch in batches)
    return np.concatenate([bundle.render(part) for part in codes])
