"""What a comparison of priors starts from: what its keys name, opened and checked.

Everything that can be wrong with the inputs is found here, before anything takes long.

Legend: V codes, K clusters, E code dimensions, L positions.
"""

from __future__ import annotations

from pathlib import Path

from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache
from training.data.images import open_images
from training.stages.configs import CompareConfig
from training.studies.candidate_priors import Candidate
from training.studies.codebook_source import TrainedTokenizer


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
