"""What the pictures of a prior start from: what the keys name, opened and checked.

Everything that can be wrong with the inputs is found here, before anything takes long.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from masc_core.bundle.manifest import PRIOR_FILE
from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import SemanticTree, build_tree
from training.stages.configs import ShowConfig
from training.stages.prior import TREE_FILE
from training.studies.codebook_source import TrainedTokenizer


class ShowInputs:
    """The files that pictures are made from.

    Parameters
    ----------
    config : keys of the pictures

    Attributes
    ----------
    tokenizer : what was opened
    model : its model, on the device of the configuration
    prior : over the tokenizer's V codes
    has_tree : whether the tree lies beside the prior, or has to be built

    Raises
    ------
    ConfigError
        There is no prior, or it is over another number of codes; names the key.
    ArtifactError
        A file is missing or damaged.
    """

    def __init__(self, config: ShowConfig) -> None:
        device = resolve_device(config.device)
        place = config.prior or config.tokenizer  # a bundle is the folder of a prior too
        if config.prior is None and not place.is_dir():
            raise ConfigError("prior: only a bundle brings one, a tokenizer's file does not")
        self.tokenizer = TrainedTokenizer.open(config.tokenizer)
        self.prior = ClusterMap.load(place / PRIOR_FILE if place.is_dir() else place)
        self._check("prior:", self.prior.num_codes)
        self._tree: SemanticTree | None = None
        if (place / TREE_FILE).exists():
            self._tree = SemanticTree.load(place / TREE_FILE)
            self._check(f"prior: {TREE_FILE}", self._tree.num_codes)
        self._raw_rows = config.raw_rows
        self.model = self.tokenizer.model.to(device)

    @property
    def has_tree(self) -> bool:
        """Whether the tree was read from a file."""
        return self._tree is not None

    def tree(self) -> SemanticTree:
        """Return the tree that was read, or build it over the codebook."""
        if self._tree is not None:
            return self._tree
        return build_tree(self.tokenizer.rows(raw=self._raw_rows))

    def _check(self, key: str, num_codes: int) -> None:
        expected = self.tokenizer.model.config.num_codes
        if num_codes != expected:
            raise ConfigError(f"{key} is over {num_codes} codes, the tokenizer has {expected}")
