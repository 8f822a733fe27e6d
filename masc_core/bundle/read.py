"""Model bundles: transformer, tokenizer, prior, and what else there is, from one folder.

Weights are safetensors, nothing is unpickled, and nothing is loaded before every file has matched
its SHA-256.

Legend: B images, L positions, V codes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    COUNTS_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Manifest,
    partition_file,
    read_manifest,
    verify_files,
)
from masc_core.errors import ArtifactError, ConfigError, NonFiniteError
from masc_core.images import Pixels
from masc_core.io.tensors import load_module, read_shapes, read_tensors
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.conv import Decoder
from masc_core.models.cpu_decoder import CPUDecoder
from masc_core.models.gigatok import AdaptiveDecoder, GigaTokConfig, new_tokenizer
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.gpu_decoder import SIZES, GPUDecoder
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler

# What only encoding images needs; a bundle may leave it out.
ENCODER_PARTS = ("encoder", "s2to1encoder", "quant_conv")
ENCODER_PREFIXES = tuple(f"{part}." for part in ENCODER_PARTS)
# Running statistics of the training, of no use to anyone who loads a bundle.
TRAINING_KEYS = ("quantize.codebook_used",)

COUNTS_KEY = "counts"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, in evaluation mode, ready to generate."""

    manifest: Manifest
    transformer: GPT  # in the requested precision
    code_sampler: CodeSampler  # cluster to code; its models have the same precision
    tokenizer: VQModel  # float32; without `ENCODER_PARTS` where the bundle has none
    vq_decoder: Callable[[Tensor], Tensor]  # the tokenizer's, as the device computes it fastest
    # Of the training's loss, the coarsest first: that one is the code sampler's `coarse_partition`.
    partitions: tuple[ClusterMap, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.transformer.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        return self.transformer.output.weight.dtype

    @torch.inference_mode()
    def render(self, codes: Tensor, image_size: int | None = None) -> Pixels:
        """Decode codes to images, uint8 (B, H, W, 3).

        Parameters
        ----------
        codes : int64 (B, L) in [0, V), in the order of drawing. For a preview whole rows of the
            grid, as many of each image, which give the upper part, nearly as it will be in the
            whole image; or any number of latent tokens, which give the whole image coarsely
        image_size : resize whole images to so many pixels a side, as LlamaGen does before it
            rounds: bicubic, without a filter against aliasing

        Raises
        ------
        NonFiniteError : the decoder made a NaN or an infinity
        """
        codes = codes.to(self.device)
        # On a CPU one by one: the last bits of an image do not depend on its batch-mates.
        at_once = 1 if self.device.type == "cpu" else SIZES[-1]
        pixels = [self._render(part, image_size) for part in torch.split(codes, at_once)]
        return torch.cat(pixels).cpu().numpy()

    def _render(self, codes: Tensor, image_size: int | None) -> Tensor:
        # Padded before the tokenizer's transformers: they, too, are compiled for these sizes alone.
        size = min(size for size in SIZES if size >= len(codes))
        padded = F.pad(codes, (0, 0, 0, size - len(codes)))
        latents = self.tokenizer.latents(padded, self.manifest.grid)[: len(codes)]
        images = self.vq_decoder(latents)
        if image_size is not None and image_size != self.manifest.image_size:
            images = F.interpolate(images, size=(image_size, image_size), mode="bicubic")
        if not images.isfinite().all():
            raise NonFiniteError("the VQ decoder produced a NaN or an infinity")
        return to_uint8(images)


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
    dtype : precision of transformer, refiner and completer; the tokenizer's decoder stays in
        float32, in which no colour bands appear

    Raises
    ------
    ArtifactError : a file is missing, truncated, altered, or does not hold what the manifest says;
        names it
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    gpt_config, vq_config = _configs(folder, manifest)
    prior = _load_prior(folder / PRIOR_FILE, manifest, manifest.num_clusters)
    partitions = _load_partitions(folder, manifest, prior)
    counts = _load_counts(folder / COUNTS_FILE, manifest)
    model = load_module(folder / TRANSFORMER_FILE, lambda: GPT(gpt_config))
    refiner, completer = _load_refiner(folder, manifest), _load_completer(folder, manifest)
    if refiner is not None:
        refiner = refiner.to(device, dtype)
    if completer is not None:
        completer = completer.to(device, dtype)
    tokenizer = _load_tokenizer(folder, vq_config, manifest).to(device)
    for part in (model, refiner, completer, tokenizer):
        if part is not None:
            part.requires_grad_(requires_grad=False)
    return Bundle(
        manifest=manifest,
        transformer=model.to(device, dtype),
        code_sampler=CodeSampler(prior, counts, device, refiner, completer, *partitions[:1]),
        tokenizer=tokenizer,
        vq_decoder=serving_decoder(tokenizer.decoder, torch.device(device)),
        partitions=partitions,
    )


def _configs(folder: Path, manifest: Manifest) -> tuple[GPTConfig, VQConfig]:
    with _sizes_of_manifest(folder):
        return (
            GPTConfig(vocab_size=manifest.num_clusters, **dict(manifest.gpt)),
            _vq_config(manifest),
        )


@contextmanager
def _sizes_of_manifest(folder: Path, part: str = "") -> Iterator[None]:
    """Report a bad configuration as a fault of the manifest that it is made from."""
    try:
        yield
    except ConfigError as error:
        raise ArtifactError(folder / MANIFEST_FILE, f"{part}{error}") from error


def _vq_config(manifest: Manifest) -> VQConfig:
    sizes = {"num_codes": manifest.num_codes, **dict(manifest.vq)}
    if manifest.latent is None:
        return VQConfig(**sizes)
    return GigaTokConfig(**sizes, **dict(manifest.latent))


def _load_prior(path: Path, manifest: Manifest, num_clusters: int) -> ClusterMap:
    prior = ClusterMap.load(path, manifest.num_codes)
    if (prior.num_codes, prior.num_clusters) != (manifest.num_codes, num_clusters):
        raise ArtifactError(
            path,
            f"has {prior.num_codes} codes in {prior.num_clusters} clusters, "
            f"the manifest says {manifest.num_codes} in {num_clusters}",
        )
    return prior


def _load_partitions(folder: Path, manifest: Manifest, prior: ClusterMap) -> tuple[ClusterMap, ...]:
    partitions = []
    for num_clusters in manifest.partitions:
        path = folder / partition_file(num_clusters)
        partitions.append(_load_prior(path, manifest, num_clusters))
        try:
            partitions[-1].over(prior)
        except ValueError as error:
            raise ArtifactError(path, str(error)) from error
    return tuple(partitions)


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
    with _sizes_of_manifest(folder, "refiner: "):
        config = RefinerConfig(
            num_codes=manifest.num_codes,
            num_clusters=manifest.num_clusters,
            hidden_dim=manifest.gpt.dim,
            block_size=manifest.gpt.block_size,
            **dict(manifest.refiner),
        )
    return load_module(folder / REFINER_FILE, lambda: Refiner(config))


def _load_completer(folder: Path, manifest: Manifest) -> Completer | None:
    if manifest.completer is None:
        return None
    with _sizes_of_manifest(folder, "completer: "):
        config = CompleterConfig(
            vocab_size=manifest.num_codes,
            num_clusters=manifest.num_clusters,
            num_classes=manifest.gpt.num_classes,
            block_size=manifest.gpt.block_size,
            **dict(manifest.completer),
        )
    return load_module(folder / COMPLETER_FILE, lambda: Completer(config))


def _load_tokenizer(folder: Path, config: VQConfig, manifest: Manifest) -> VQModel:
    path = folder / TOKENIZER_FILE

    def build() -> VQModel:
        tokenizer = new_tokenizer(config)
        # Earlier versions wrote the encoder into the same file.
        if not any(name.startswith(ENCODER_PREFIXES) for name in names):
            # Random weights must not pass for an encoder: whoever encodes gets an AttributeError.
            for name in _encoder_of(tokenizer):
                delattr(tokenizer, name)
        return tokenizer

    def build_encoder() -> nn.ModuleDict:
        return nn.ModuleDict(_encoder_of(new_tokenizer(config)))

    names = read_shapes(path)
    kind = "gigatok1d" if any(name.startswith("s1to2decoder.") for name in names) else "vq"
    if kind != manifest.tokenizer:
        raise ArtifactError(
            path, f"holds a tokenizer {kind}, the manifest says {manifest.tokenizer}"
        )
    tokenizer = load_module(path, build, optional=TRAINING_KEYS)
    if ENCODER_FILE in manifest.files:
        for name, part in load_module(folder / ENCODER_FILE, build_encoder).items():
            setattr(tokenizer, name, part)
    return tokenizer


def _encoder_of(tokenizer: VQModel) -> dict[str, nn.Module]:
    return {name: part for name, part in tokenizer.named_children() if name in ENCODER_PARTS}


def serving_decoder(decoder: Decoder, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a decoder in the form that is fastest on the device it is on."""
    if device.type == "cuda":
        return GPUDecoder(decoder)
    return decoder if isinstance(decoder, AdaptiveDecoder) else CPUDecoder(decoder)
