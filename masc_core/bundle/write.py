"""What a model bundle is made of, whether it belongs together, and its way into one folder.

Weights are safetensors. A folder appears whole or not at all, and is never changed afterwards.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from masc_core.bundle.manifest import (
    COUNTS_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    GPTSection,
    Manifest,
    ModelCard,
    RefinerSection,
    VQSection,
    write_manifest,
)
from masc_core.bundle.read import COUNTS_KEY, ENCODER_PREFIXES, TRAINING_KEYS
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import atomic_folder, atomic_write, sha256_file
from masc_core.io.tensors import write_tensors
from masc_core.models.gpt import GPT
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQModel
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import InClusterDecoder, offered


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is made of.

    Attributes
    ----------
    model : the transformer over the prior's K clusters, with a null class
    tokenizer : its codebook has the prior's V codes
    prior : code to cluster
    counts : int (V,), how often each code occurs in the training data; offers ``frequency``
    samples : a PNG that shows what the model makes
    refiner : draws codes of this prior from the transformer's hidden states; offers ``refine``
    """

    model: GPT
    tokenizer: VQModel
    prior: ClusterMap
    counts: npt.NDArray[np.integer] | None = None
    samples: bytes | None = None
    refiner: Refiner | None = None


def save_bundle(
    folder: str | PathLike[str],
    card: ModelCard,
    parts: BundleParts,
    *,
    weights_dtype: torch.dtype = torch.float16,
    with_encoder: bool = False,
) -> Manifest:
    """Write a new bundle; its folder, and the ones above it, are made.

    Parameters
    ----------
    folder : must not exist yet
    card : name, version, class names, defaults, provenance, metrics
    parts : the models
    weights_dtype : precision of the weights on disk
    with_encoder : keep the tokenizer's encoder, which serving does not need

    Returns
    -------
    the manifest that was written

    Raises
    ------
    ConfigError : the parts do not belong together
    ArtifactError : the folder exists or cannot be written, or a weight does not fit the precision
    """
    with new_bundle(folder) as draft:
        return write_bundle(
            draft, card, parts, weights_dtype=weights_dtype, with_encoder=with_encoder
        )


@contextmanager
def new_bundle(folder: str | PathLike[str]) -> Iterator[Path]:
    """Lend a folder for `write_bundle` that becomes ``folder`` when the block ends well.

    Raises
    ------
    ArtifactError : the folder exists, or it cannot be written
    """
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError(folder, "exists already; a published version is never changed")
    try:
        with atomic_folder(folder) as draft:
            yield draft
    except OSError as error:
        raise ArtifactError(folder, f"cannot be written: {error.strerror}") from error


def write_bundle(
    folder: Path,
    card: ModelCard,
    parts: BundleParts,
    *,
    weights_dtype: torch.dtype = torch.float16,
    with_encoder: bool = False,
) -> Manifest:
    """Write a bundle into an empty folder; the rest as for `save_bundle`."""
    _check_parts(parts)
    _write_weights(folder, parts, weights_dtype, with_encoder=with_encoder)
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    return write_manifest(folder, _manifest(card, parts, files))


def _check_parts(parts: BundleParts) -> None:
    gpt, vq, prior = parts.model.config, parts.tokenizer.config, parts.prior
    if gpt.vocab_size != prior.num_clusters:
        raise ConfigError(
            f"the transformer predicts {gpt.vocab_size} clusters, "
            f"but the prior has {prior.num_clusters}"
        )
    if vq.num_codes != prior.num_codes:
        raise ConfigError(
            f"the tokenizer has {vq.num_codes} codes, but the prior has {prior.num_codes}"
        )
    if gpt.num_class_rows == gpt.num_classes:
        raise ConfigError("a transformer trained with class_dropout 0 cannot be guided, nor served")
    if parts.refiner is not None:
        _check_refiner(parts.refiner.config, parts)


def _check_refiner(config: RefinerConfig, parts: BundleParts) -> None:
    gpt, prior = parts.model.config, parts.prior
    fitting = {
        "num_codes": prior.num_codes,
        "num_clusters": prior.num_clusters,
        "hidden_dim": gpt.dim,
        "block_size": gpt.block_size,
    }
    for name, value in fitting.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"the refiner has {name} {getattr(config, name)}, the other models have {value}"
            )


def _manifest(card: ModelCard, parts: BundleParts, files: Mapping[str, str]) -> Manifest:
    gpt, vq, refiner = parts.model.config, parts.tokenizer.config, parts.refiner
    refiner_section = refiner and RefinerSection(
        **{name: getattr(refiner.config, name) for name in RefinerSection.model_fields}
    )
    return Manifest(
        **dict(card),
        gpt=GPTSection(**{name: getattr(gpt, name) for name in GPTSection.model_fields}),
        vq=VQSection(**{name: getattr(vq, name) for name in VQSection.model_fields}),
        refiner=refiner_section,
        num_codes=vq.num_codes,
        num_clusters=gpt.vocab_size,
        grid=gpt.grid_size,
        image_size=gpt.grid_size * vq.factor,
        decodings=offered(counts=parts.counts is not None, refiner=refiner is not None),
        files=dict(files),
    )


def _write_weights(
    folder: Path, parts: BundleParts, dtype: torch.dtype, *, with_encoder: bool
) -> None:
    left_out = TRAINING_KEYS if with_encoder else (*TRAINING_KEYS, *ENCODER_PREFIXES)
    write_tensors(folder / TRANSFORMER_FILE, parts.model.state_dict(), dtype)
    write_tensors(
        folder / TOKENIZER_FILE,
        {k: v for k, v in parts.tokenizer.state_dict().items() if not k.startswith(left_out)},
        dtype,
    )
    parts.prior.save(folder / PRIOR_FILE)
    if parts.counts is not None:
        InClusterDecoder(parts.prior, parts.counts)  # refuses counts that do not fit
        counts = torch.from_numpy(np.asarray(parts.counts).astype(np.int64))
        write_tensors(folder / COUNTS_FILE, {COUNTS_KEY: counts}, dtype)
    if parts.refiner is not None:
        write_tensors(folder / REFINER_FILE, parts.refiner.state_dict(), dtype)
    if parts.samples is not None:
        atomic_write(folder / SAMPLES_FILE, parts.samples)
