"""What a comparison of priors starts from: its keys, and what they name, opened and checked.

Everything that can be wrong with the inputs is found here, before anything takes long.

Legend: V codes, K clusters, E code dimensions, L positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from training.config import StageConfig
from training.data.code_cache import CodeCache
from training.data.images import open_images
from training.metrics.image_quality import WINDOW
from training.studies.candidate_priors import CANDIDATES, Candidate
from training.studies.codebook_source import TrainedTokenizer

DEFAULT_METHODS = (
    *("average", "kmeans++", "kmeans", "complete", "single", "centroid"),
    *("balanced-kmeans", "random", "average-shuffled"),
)
LEAST_IMAGES = 4  # two to fit to and two to measure on: errors need two


class CompareConfig(StageConfig):
    """Keys of a comparison."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, or the folder of a bundle with an encoder"
    )
    images: Path = Field(
        description="images to measure on: class folders, tar shards or parquet files"
    )
    codes: Path | None = Field(
        None, description="code cache of the training images; without it half of the images serve"
    )
    methods: tuple[str, ...] = Field(
        DEFAULT_METHODS, description="ways to make a prior; the others are held against the first"
    )
    num_clusters: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="one K or several; without it V/2, V/4 and V/8"
    )
    priors: tuple[Path, ...] = Field((), description="files of further priors")
    image_size: int = Field(64, ge=WINDOW)
    max_images: int = Field(
        1000, ge=LEAST_IMAGES, description="images to read, spread over the folder"
    )
    draws: int = Field(3, ge=2, description="times that all codes are replaced")
    raw_rows: bool = Field(
        default=False, description="cluster the rows as stored, not the normalised ones codes mean"
    )
    seed: int = Field(
        0, ge=0, lt=1 << 32, description="seed of what is random in the methods, and of the draws"
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            if method not in CANDIDATES:
                raise ValueError(f"no method {method!r}; there are {', '.join(CANDIDATES)}")
        return methods

    @field_validator("methods", "num_clusters", "priors")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dict.fromkeys(values))


class CompareInputs:
    """The files of a comparison.

    Parameters
    ----------
    config : keys of the comparison

    Attributes
    ----------
    model : the tokenizer, in evaluation mode on the device of the configuration
    tokenizer_sha256 : hash of its file
    rows : float64 (V, E), what is clustered
    num_clusters : every K
    given : priors from files, named by them
    folder : the images
    cache : codes of the training images, if there is one

    Raises
    ------
    ConfigError
        Inputs that do not belong together, or more clusters than codes; names the key.
    ArtifactError
        A file is missing or damaged.
    """

    def __init__(self, config: CompareConfig) -> None:
        device = resolve_device(config.device)
        tokenizer = TrainedTokenizer.open(config.tokenizer)
        if not tokenizer.has_encoder:
            raise ConfigError(f"tokenizer: the bundle {config.tokenizer} has no encoder")
        model, self.tokenizer_sha256 = tokenizer.model, tokenizer.sha256
        self.num_codes = model.config.num_codes
        self.num_positions = model.config.grid_size(config.image_size) ** 2
        self.num_clusters = config.num_clusters or _usual_clusters(self.num_codes)
        if max(self.num_clusters) > self.num_codes:
            raise ConfigError(
                f"num_clusters: {max(self.num_clusters)} of {self.num_codes} codes is impossible"
            )
        if not config.methods and not config.priors:
            raise ConfigError("methods: there is nothing to compare")
        self.given = tuple(self._load_prior(path) for path in config.priors)
        self.folder = open_images(config.images)
        self.cache = None if config.codes is None else self._open_cache(config.codes)
        self.rows = tokenizer.rows(raw=config.raw_rows)
        self.model = model.to(device)

    def _load_prior(self, path: Path) -> Candidate:
        prior = ClusterMap.load(path)
        if prior.num_codes != self.num_codes:
            raise ConfigError(
                f"priors: {path} is over {prior.num_codes} codes, "
                f"the tokenizer has {self.num_codes}"
            )
        return Candidate(str(path), prior.num_clusters, str(path), prior)

    def _open_cache(self, folder: Path) -> CodeCache:
        cache = CodeCache.open(folder)
        if cache.index.tokenizer_sha256 != self.tokenizer_sha256:
            raise ConfigError("codes: were made by another tokenizer")
        if cache.index.num_positions != self.num_positions:
            raise ConfigError(
                f"image_size: makes {self.num_positions} codes an image, "
                f"the code cache has {cache.index.num_positions}"
            )
        if cache.index.files_sha256 == self.folder.fingerprint():
            raise ConfigError("codes: are those of the images that are to be measured")
        return cache


def _usual_clusters(num_codes: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(1, num_codes // part) for part in (2, 4, 8)))
