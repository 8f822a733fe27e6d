"""Model bundles: transformer, tokenizer, prior, and what else there is, to one folder and back.

Weights are safetensors, nothing is unpickled, and nothing is loaded before every file has matched
its SHA-256. A folder appears whole or not at all, and is never changed afterwards.
This module does not know where the folder lives (`masc_core.registry`) nor how images are
generated (`masc_core.generate`).

Legend: B images, L positions, V codes, H and W pixels.
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
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from masc_core.errors import ArtifactError, ConfigError, NonFiniteError
from masc_core.files import atomic_folder, atomic_write, sha256_file
from masc_core.images import Pixels
from masc_core.in_cluster import InClusterDecoder, offered
from masc_core.manifest import (
    COUNTS_FILE,
    MANIFEST_FILE,
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
    read_manifest,
    verify_files,
    write_manifest,
)
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from masc_core.prior import ClusterMap
from masc_core.tensors import fill_module, read_names, read_tensors, write_tensors

# What only encoding images needs; a bundle may leave it out.
ENCODER_PREFIXES = ("encoder.", "quant_conv.")
# Running statistics of the training, of no use to anyone who loads a bundle.
TRAINING_KEYS = ("quantize.codebook_used",)

COUNTS_KEY = "counts"

# A GPU is busy with them, and what is between two layers takes no more than a GiB.
GPU_IMAGES_AT_ONCE = 32


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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, in evaluation mode, ready to generate.

    Attributes
    ----------
    manifest : what it is
    model : the transformer, in the requested precision
    decoder : cluster to code, with the refiner, in the same precision, if there is one
    tokenizer : float32; lacks ``encoder`` and ``quant_conv`` where the bundle leaves them out
    """

    manifest: Manifest
    model: GPT
    decoder: InClusterDecoder
    tokenizer: VQModel

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.model.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        return self.model.output.weight.dtype

    @torch.inference_mode()
    def render(self, codes: Tensor, image_size: int | None = None) -> Pixels:
        """Decode grids of codes to images.

        On the CPU the images are decoded one by one: convolutions choose their algorithm by the
        size of the batch, so the last bits of an image would depend on its batch-mates.

        Parameters
        ----------
        codes : int64 (B, L) in [0, V), raster order; or whole rows of the grid, as many of each
            image, for a preview: the upper part, nearly as it will be in the whole image
        image_size : resize whole images to so many pixels a side, as LlamaGen does before it
            rounds: bicubic, without a filter against aliasing

        Returns
        -------
        uint8 (B, H, W, 3), or less high where rows are missing

        Raises
        ------
        NonFiniteError : the decoder made a NaN or an infinity
        """
        codes = codes.to(self.device)
        at_once = 1 if self.device.type == "cpu" else GPU_IMAGES_AT_ONCE
        pixels = [self._render(part, image_size) for part in torch.split(codes, at_once)]
        return torch.cat(pixels).cpu().numpy()

    def _render(self, codes: Tensor, image_size: int | None) -> Tensor:
        images = self.tokenizer.decode_codes(codes, self.manifest.grid)
        if image_size is not None and image_size != self.manifest.image_size:
            images = F.interpolate(images, size=(image_size, image_size), mode="bicubic")
        if not images.isfinite().all():
            raise NonFiniteError("the VQ decoder produced a NaN or an infinity")
        return to_uint8(images)


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


def load_bundle(
    folder: str | PathLike[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Verify and load a bundle.

    Parameters
    ----------
    folder : holds ``manifest.json``
    device : where everything goes
    dtype : precision of transformer and refiner; the tokenizer's decoder stays in float32, in
        which no colour bands appear

    Raises
    ------
    ArtifactError : a file is missing, truncated, altered, or does not hold what the manifest says;
        names it
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    gpt_config, vq_config = _configs(folder, manifest)
    prior = _load_prior(folder / PRIOR_FILE, manifest)
    counts = _load_counts(folder / COUNTS_FILE, manifest)
    with torch.device("meta"):
        empty = GPT(gpt_config)
    model = fill_module(folder / TRANSFORMER_FILE, empty)
    refiner = _load_refiner(folder, manifest)
    if refiner is not None:
        refiner = refiner.to(device, dtype)
    return Bundle(
        manifest=manifest,
        model=model.to(device, dtype).eval().requires_grad_(requires_grad=False),
        decoder=InClusterDecoder(prior, counts, device, refiner),
        tokenizer=_place(_load_tokenizer(folder / TOKENIZER_FILE, vq_config), torch.device(device)),
    )


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


def _configs(folder: Path, manifest: Manifest) -> tuple[GPTConfig, VQConfig]:
    try:
        return (
            GPTConfig(vocab_size=manifest.num_clusters, **dict(manifest.gpt)),
            VQConfig(num_codes=manifest.num_codes, **dict(manifest.vq)),
        )
    except ConfigError as error:
        raise ArtifactError(folder / MANIFEST_FILE, str(error)) from error


def _load_prior(path: Path, manifest: Manifest) -> ClusterMap:
    prior = ClusterMap.load(path)
    if (prior.num_codes, prior.num_clusters) != (manifest.num_codes, manifest.num_clusters):
        raise ArtifactError(
            path,
            f"has {prior.num_codes} codes in {prior.num_clusters} clusters, "
            f"the manifest says {manifest.num_codes} in {manifest.num_clusters}",
        )
    return prior


def _load_counts(path: Path, manifest: Manifest) -> npt.NDArray[np.int64] | None:
    if COUNTS_FILE not in manifest.files:
        return None
    counts = read_tensors(path).get(COUNTS_KEY)
    if counts is None or counts.shape != (manifest.num_codes,) or counts.dtype != torch.int64:
        raise ArtifactError(path, f"does not hold {manifest.num_codes} int64 {COUNTS_KEY}")
    if (counts < 0).any():
        raise ArtifactError(path, "holds a negative count")
    return counts.numpy()


def _load_refiner(folder: Path, manifest: Manifest) -> Refiner | None:
    if manifest.refiner is None:
        return None
    try:
        config = RefinerConfig(
            num_codes=manifest.num_codes,
            num_clusters=manifest.num_clusters,
            hidden_dim=manifest.gpt.dim,
            block_size=manifest.gpt.block_size,
            **dict(manifest.refiner),
        )
    except ConfigError as error:
        raise ArtifactError(folder / MANIFEST_FILE, f"refiner: {error}") from error
    with torch.device("meta"):
        empty = Refiner(config)
    refiner = fill_module(folder / REFINER_FILE, empty)
    return refiner.eval().requires_grad_(requires_grad=False)


def _load_tokenizer(path: Path, config: VQConfig) -> VQModel:
    with torch.device("meta"):
        tokenizer = VQModel(config)
    if not any(name.startswith(ENCODER_PREFIXES) for name in read_names(path)):
        # Random weights must not pass for an encoder: whoever encodes gets an AttributeError.
        del tokenizer.encoder, tokenizer.quant_conv
    tokenizer = fill_module(path, tokenizer, optional=TRAINING_KEYS)
    return tokenizer.eval().requires_grad_(requires_grad=False)


def _place(tokenizer: VQModel, device: torch.device) -> VQModel:
    """On a GPU with channels last, which its convolutions take as they are."""
    tokenizer = tokenizer.to(device)
    if device.type == "cuda":
        convert_conv2d_weight_memory_format(tokenizer, torch.channels_last)
    return tokenizer
