"""Images written to files without a queue, by the plain loop.

The same request gives the same pixels as the service does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from masc_core.api import load_model
from masc_core.errors import ConfigError
from masc_core.images import ImageFormat, contact_sheet, encode_image
from masc_core.io.files import atomic_write
from object_storage.registry import open_registry
from worker.settings import WorkerSettings

FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}


def generate_files(
    settings: WorkerSettings,
    out: Path,
    *,
    scale: int = 1,
    columns: int = 10,
    **request: Any,  # noqa: ANN401 - as `Model.generate` has them
) -> list[Path]:
    """Generate, and write an image, a captioned sheet, or a folder of images.

    Parameters
    ----------
    out : with the suffix of an image one file, otherwise a folder
    scale : every pixel becomes ``scale`` x ``scale``
    columns : images a row of a sheet
    request : what to make, as of `masc_core.api.Model.generate`

    Raises
    ------
    ConfigError : the file cannot be written, or its suffix is no image format
    UnknownClassError, InvalidFieldError : the model has no such class or setting
    """
    if out.suffix and out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: not an image format; there are {', '.join(FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    models = open_registry(settings.models_dir)
    folder = models.path(models.default(settings.default_model))
    model = load_model(folder, device=settings.device, dtype=settings.dtype)
    made = model.generate(**request)
    pixels = made.images.repeat(scale, axis=1).repeat(scale, axis=2)
    captions = [model.manifest.class_names[params.class_id] for params in made.params]
    descriptions = [""] * len(pixels)
    if settings.image_metadata:
        descriptions = [model.manifest.describe_image(params) for params in made.params]
    try:
        if not out.suffix:
            out.mkdir(parents=True, exist_ok=True)
            names = [
                f"{params.class_id:03d}-{caption.replace('/', '-')}-{params.seed}.png"
                for params, caption in zip(made.params, captions, strict=True)
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
