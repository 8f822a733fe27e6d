r"""Fetch weights that were released, by name, and take them in.

::

    masc models pull llamagen-l-384
    masc models pull vq-16 --out runs/imagenet/tokenizer

A transformer comes with its tokenizer and becomes a version, as ``masc models import`` makes one; a
tokenizer alone becomes a run, as of ``masc tokenizer import``. What is fetched stays in the hub's
cache.
"""

from __future__ import annotations

from pathlib import Path

from masc_core.bundle.manifest import TOKENIZER_FILE, Manifest
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, UnknownModelError
from masc_core.io.files import read_json, sha256_file
from masc_core.progress import ProgressCallback, no_progress
from masc_core.settings import models_dir
from object_storage.registry import open_registry
from training.downloads import local_file
from training.pretrained.released import RELEASED
from training.stages.configs import ImportConfig, ImportOptions, ImportTokenizerConfig, PullConfig
from training.stages.import_weights import import_model, import_tokenizer

# What leaves a version as it is.
ELSEWHERE = {"models", "activate", "device", "threads"}


def pull(config: PullConfig, report: ProgressCallback = no_progress) -> Manifest | Path:
    """Fetch, and write a version or the folder of a tokenizer; errors as those of the imports.

    Without ``version`` or an option of what is in one, a version that was made of the same files
    before is taken instead, as is the folder of such a tokenizer.
    """
    released = RELEASED[config.weights]
    if released.gpt is None:
        out = config.out or Path("runs", config.weights)
        if _is_of(out, released.tokenizer, report):
            return out
        values = {"source": released.tokenizer, "out": out, "threads": config.threads}
        import_tokenizer(ImportTokenizerConfig.model_validate(values), report)
        return out
    name = config.name or config.weights
    taken = config.model_dump(exclude={"weights", "out"}) | {
        "name": name,
        "gpt": released.gpt,
        "tokenizer": released.tokenizer,
        "image_size": released.image_size,
    }
    sources = {"gpt": released.gpt, "tokenizer": released.tokenizer}
    files = {key: sha256_file(local_file(source, report)) for key, source in sources.items()}
    registry = open_registry(models_dir(config.models))
    as_usual = config.model_fields_set.isdisjoint(ImportOptions.model_fields.keys() - ELSEWHERE)
    found = _published_version(registry, name, files) if as_usual else None
    if found is None:
        return import_model(ImportConfig.model_validate(taken), report)
    if config.activate:
        registry.activate(name, found.version)
    return found


def _is_of(folder: Path, source: str, report: ProgressCallback) -> bool:
    """Whether a folder has the tokenizer of that file."""
    if not (folder / TOKENIZER_FILE).exists():
        return False
    try:
        imported = read_json(folder / "config.json").get("imported")
    except (OSError, ValueError):
        return False
    return _same(imported, sha256_file(local_file(source, report)))


def _same(imported: object, sha256: str) -> bool:
    return (
        isinstance(imported, dict)
        and imported.get("sha256") == sha256
        and imported.get("weights") == "model"
    )


def _published_version(registry: Registry, name: str, files: dict[str, str]) -> Manifest | None:
    """The newest version that is made of files of these hashes."""
    try:
        versions = registry.versions(name)
    except (ArtifactError, UnknownModelError):  # there is none yet
        return None
    for version in reversed(versions):
        try:
            manifest = registry.manifest(name, version)
        except ArtifactError:  # damaged
            continue
        imported = manifest.provenance.get("imported")
        if (
            isinstance(imported, dict)
            and imported.keys() == files.keys()
            and all(_same(imported[key], sha256) for key, sha256 in files.items())
        ):
            return manifest
    return None
