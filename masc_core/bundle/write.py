"""How a model bundle is written: its parts, whether they belong together, and a draft of a version.

Weights are safetensors. A draft stands beside its place under a hidden name, on the same disk, and
is measured there as it will be served; it is listed whole or not at all, whenever its process ends,
and never changed afterwards.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, JsonValue

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    COUNTS_FILE,
    ENCODER_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    CompleterSection,
    GPTSection,
    LatentSection,
    Manifest,
    ModelCard,
    RefinerSection,
    VQSection,
    partition_file,
    write_manifest,
)
from masc_core.bundle.read import COUNTS_KEY, ENCODER_PREFIXES, TRAINING_KEYS, Bundle, load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ConfigError
from masc_core.io.files import atomic_write, sha256_file
from masc_core.io.tensors import write_tensors
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gigatok import GigaTokConfig
from masc_core.models.gpt import GPT
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQModel
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler, offered

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is made of."""

    transformer: GPT  # over the prior's K clusters, with a null class
    tokenizer: VQModel  # its codebook has the prior's V codes
    prior: ClusterMap
    counts: npt.NDArray[np.integer] | None = None  # of each code in the training data, int (V,)
    refiner: Refiner | None = None  # draws codes of this prior from the transformer's hidden states
    partitions: Sequence[ClusterMap] = ()  # of the codes, of which the training's loss knew
    completer: Completer | None = None  # draws codes of this prior from all clusters of an image


@contextmanager
def draft_version(registry: Registry, name: str, version: str | None) -> Iterator[BundleDraft]:
    """Lend a draft, which becomes a version of the model when the block ends well.

    As `Registry.new_version` does, with its errors.
    """
    with registry.new_version(name, version) as (folder, chosen):
        yield BundleDraft(folder, chosen)


class BundleDraft:
    """A bundle that nobody sees yet; use `draft_version`.

    Attributes
    ----------
    version : its name
    """

    def __init__(self, folder: Path, version: str) -> None:
        self.version = version
        self._folder = folder
        self._manifest: Manifest | None = None

    def write(
        self,
        card: ModelCard,
        parts: BundleParts,
        *,
        weights_dtype: torch.dtype = torch.float16,
        with_encoder: bool = False,
    ) -> Manifest:
        """Write the bundle; return its manifest.

        Parameters
        ----------
        card : name, version, class names, defaults, provenance, metrics
        parts : the models
        weights_dtype : precision of the weights on disk
        with_encoder : keep the tokenizer's encoder, which serving does not need

        Raises
        ------
        ConfigError : the parts do not belong together
        ArtifactError : a weight does not fit the precision
        """
        _check_parts(parts, with_encoder=with_encoder)
        _write_weights(self._folder, parts, weights_dtype, with_encoder=with_encoder)
        files = {path.name: sha256_file(path) for path in sorted(self._folder.iterdir())}
        self._manifest = write_manifest(self._folder, _manifest(card, parts, files))
        return self._manifest

    def load(self, device: str) -> Bundle:
        """Load what was written, as a worker would."""
        on = resolve_device(device)
        return load_bundle(self._folder, on, choose_dtype("auto", on))

    def finish(
        self,
        metrics: Mapping[str, JsonValue] | None = None,
        samples: bytes | None = None,
        codebook: CodebookFiles | None = None,
    ) -> Manifest:
        """Add measured figures, a PNG of images and what people see of the codebook."""
        if self._manifest is None:
            raise RuntimeError("a draft must be written before it is finished")
        pictures = {} if samples is None else {SAMPLES_FILE: samples}
        pictures |= {} if codebook is None else codebook.encode()
        files = dict(self._manifest.files)
        for name, content in pictures.items():
            atomic_write(self._folder / name, content)
            files[name] = sha256_file(self._folder / name)
        figures = {**self._manifest.metrics, **(metrics or {})}
        self._manifest = self._manifest.model_copy(update={"metrics": figures, "files": files})
        return write_manifest(self._folder, self._manifest)


def _check_parts(parts: BundleParts, *, with_encoder: bool) -> None:
    gpt, vq, prior = parts.transformer.config, parts.tokenizer.config, parts.prior
    if gpt.vocab_size != prior.num_clusters:
        raise ConfigError(
            f"the transformer predicts {gpt.vocab_size} clusters, "
            f"but the prior has {prior.num_clusters}"
        )
    if vq.num_codes != prior.num_codes:
        raise ConfigError(
            f"the tokenizer has {vq.num_codes} codes, but the prior has {prior.num_codes}"
        )
    vq.check_positions(gpt.block_size)
    for partition in parts.partitions:
        try:
            partition.over(prior)
        except ValueError as error:
            raise ConfigError(f"the partition into {partition.num_clusters} {error}") from error
    if gpt.num_class_rows == gpt.num_classes:
        raise ConfigError("a transformer trained with class_dropout 0 cannot be guided, nor served")
    if with_encoder and not hasattr(parts.tokenizer, "encoder"):
        raise ConfigError("with_encoder: the tokenizer has no encoder")
    sizes = {"num_clusters": prior.num_clusters, "block_size": gpt.block_size}
    if parts.refiner is not None:
        _require_sizes(
            "refiner", parts.refiner.config, hidden_dim=gpt.dim, num_codes=vq.num_codes, **sizes
        )
    if (completer := parts.completer) is not None:
        sizes |= {"num_classes": gpt.num_classes, "vocab_size": vq.num_codes}
        _require_sizes("completer", completer.config, **sizes)
        if completer.config.num_class_rows == gpt.num_classes:
            raise ConfigError(
                "a completer trained with class_dropout 0 cannot be guided, nor served"
            )


def _require_sizes(part: str, config: RefinerConfig | CompleterConfig, **sizes: int) -> None:
    for name, value in sizes.items():
        actual = getattr(config, name)
        if actual != value:
            raise ConfigError(f"the {part} has {name} {actual}, the other models have {value}")


def _write_weights(
    folder: Path, parts: BundleParts, dtype: torch.dtype, *, with_encoder: bool
) -> None:
    tokenizer = parts.tokenizer.state_dict()
    encoder = {name: w for name, w in tokenizer.items() if name.startswith(ENCODER_PREFIXES)}
    left_out = (*TRAINING_KEYS, *ENCODER_PREFIXES)
    tokenizer = {name: w for name, w in tokenizer.items() if not name.startswith(left_out)}
    write_tensors(folder / TRANSFORMER_FILE, parts.transformer.state_dict(), dtype)
    write_tensors(folder / TOKENIZER_FILE, tokenizer, dtype)
    if with_encoder:
        write_tensors(folder / ENCODER_FILE, encoder, dtype)
    parts.prior.save(folder / PRIOR_FILE)
    for partition in parts.partitions:
        partition.save(folder / partition_file(partition.num_clusters))
    if parts.counts is not None:
        CodeSampler(parts.prior, parts.counts)  # refuses counts that do not fit
        counts = torch.from_numpy(np.asarray(parts.counts).astype(np.int64))
        write_tensors(folder / COUNTS_FILE, {COUNTS_KEY: counts}, dtype)
    if parts.refiner is not None:
        write_tensors(folder / REFINER_FILE, parts.refiner.state_dict(), dtype)
    if parts.completer is not None:
        write_tensors(folder / COMPLETER_FILE, parts.completer.state_dict(), dtype)


def _manifest(card: ModelCard, parts: BundleParts, files: Mapping[str, str]) -> Manifest:
    gpt, vq = parts.transformer.config, parts.tokenizer.config
    refiner, completer = parts.refiner, parts.completer
    latent = _section(LatentSection, vq) if isinstance(vq, GigaTokConfig) else None
    return Manifest(
        **dict(card),
        gpt=_section(GPTSection, gpt),
        tokenizer="gigatok1d" if latent else "vq",
        latent=latent,
        vq=_section(VQSection, vq),
        refiner=refiner and _section(RefinerSection, refiner.config),
        completer=completer and _section(CompleterSection, completer.config),
        num_codes=vq.num_codes,
        num_clusters=gpt.vocab_size,
        grid=gpt.grid_size,
        image_size=gpt.grid_size * vq.factor,
        decodings=offered(
            counts=parts.counts is not None,
            refiner=refiner is not None,
            completer=completer is not None,
        ),
        files=dict(files),
    )


def _section(section: type[Section], config: object) -> Section:
    """Those sizes of a model that the manifest has a place for."""
    return section(**{name: getattr(config, name) for name in section.model_fields})
