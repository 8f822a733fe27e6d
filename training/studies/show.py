r"""Show a prior: the top of its tree, the sizes of its clusters, and the codebook atlas.

::

    masc prior show --tokenizer models/cifar10/1 --out runs/cifar10/pictures
    masc prior show --tokenizer runs/cifar10/tokenizer/tokenizer.safetensors \
        --prior runs/cifar10/prior --out runs/cifar10/pictures

Writes ``dendrogram.png``, ``sizes.png``, and the atlas twice: as images, and as pages to browse,
beginning with ``atlas.png`` and ``atlas.html``. All of it comes at the end, so that an interrupted
run leaves what was there.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.images import Pixels
from masc_core.io.files import atomic_write, writing
from masc_core.progress import ProgressCallback, no_progress
from masc_core.semantic_tree import LeafOrder
from masc_core.tree import SemanticTree, build_tree
from training.config import set_threads
from training.data.codebook_source import TrainedTokenizer
from training.data.patches import code_patches, enlarge
from training.data.prior_source import prior_file, read_prior
from training.loop.run_dir import lock_folder
from training.stages.configs import ShowConfig
from training.stages.prior import RUN_TREE_FILE
from training.studies.atlas import (
    Overview,
    atlas_clusters,
    atlas_pages,
    draw_sheet,
    page_stem,
    split_clusters,
)
from training.studies.prior_plots import dendrogram, size_histogram

PATCH_SIDE = 40  # pixels
CODES_PER_SHEET = 2048
DENDROGRAM, SIZES = "dendrogram.png", "sizes.png"


@dataclass(frozen=True, slots=True)
class ShownPrior:
    """V and K of what was drawn, and the pages of the atlas, the first one first."""

    num_codes: int
    num_clusters: int
    pages: tuple[Path, ...]


def show_prior(
    config: ShowConfig,
    report: ProgressCallback = no_progress,
    codes_per_sheet: int = CODES_PER_SHEET,
) -> ShownPrior:
    """Run the stage.

    Raises
    ------
    ConfigError
        Inputs that do not belong together, or a folder that cannot be written; names the key.
    ArtifactError
        A file is missing, damaged, or cannot be written.
    """
    set_threads(config.threads)
    inputs = ShowInputs(config)
    with lock_folder(config.out):
        patches = code_patches(
            inputs.model, shuffles=config.shuffles, seed=config.seed, report=report
        )
        report(0, 2, "tree")
        order = LeafOrder.of(inputs.tree())
        report(1, 2, "pictures")
        files = _draw(config, inputs, order, enlarge(patches, PATCH_SIDE), codes_per_sheet)
        _write(config.out, files)
        report(2, 2, "pictures")
    pages = tuple(config.out / name for name in files if name.endswith(".html"))
    return ShownPrior(inputs.prior.num_codes, inputs.prior.num_clusters, pages)


class ShowInputs:
    """What the keys name, opened; whatever is wrong with it is found before anything takes long.

    Attributes
    ----------
    tokenizer : what was opened
    model : its model, on the device of the configuration
    prior : over the tokenizer's V codes
    has_tree : whether the tree lies beside the prior, or has to be built
    """

    def __init__(self, config: ShowConfig) -> None:
        device = resolve_device(config.device)
        path = config.prior or config.tokenizer  # a bundle is the folder of a prior too
        if config.prior is None and not path.is_dir():
            raise ConfigError("prior: only a bundle brings one, a tokenizer's file does not")
        self.tokenizer = TrainedTokenizer.open(config.tokenizer)
        self.prior = read_prior(prior_file(path))
        self._check("prior:", self.prior.num_codes)
        self._tree: SemanticTree | None = None
        if (path / RUN_TREE_FILE).exists():
            self._tree = SemanticTree.load(path / RUN_TREE_FILE)
            self._check(f"prior: {RUN_TREE_FILE}", self._tree.num_codes)
        self.has_tree = self._tree is not None
        self._raw_rows = config.raw_rows
        self.model = self.tokenizer.model.to(device)

    def tree(self) -> SemanticTree:
        """Return the tree that was read, or build it over the codebook."""
        return self._tree or build_tree(self.tokenizer.rows(raw=self._raw_rows))

    def _check(self, key: str, num_codes: int) -> None:
        expected = self.tokenizer.model.config.num_codes
        if num_codes != expected:
            raise ConfigError(f"{key} is over {num_codes} codes, the tokenizer has {expected}")


def _draw(
    config: ShowConfig,
    inputs: ShowInputs,
    order: LeafOrder,
    patches: Pixels,
    codes_per_sheet: int,
) -> dict[str, bytes]:
    """Content of all files by name: pictures before the pages that show them."""
    clusters = atlas_clusters(inputs.prior, order)
    sheets = [draw_sheet(part, patches) for part in split_clusters(clusters, codes_per_sheet)]
    overview = Overview(
        f"Codebook of {inputs.tokenizer.name}",
        _facts(config, inputs, order),
        {
            DENDROGRAM: "dendrogram of the last merges, with codes of every branch",
            SIZES: "number of clusters over the number of codes that they hold",
        },
    )
    files = {
        DENDROGRAM: dendrogram(order, patches, config.leaves),
        SIZES: size_histogram(inputs.prior),
    }
    files |= {f"{page_stem(i)}.png": sheet.png for i, sheet in enumerate(sheets)}
    for i, page in enumerate(atlas_pages(sheets, overview)):
        files[f"{page_stem(i)}.html"] = page.encode("utf-8", "replace")  # of a path's odd bytes
    return files


def _facts(config: ShowConfig, inputs: ShowInputs, order: LeafOrder) -> dict[str, str]:
    prior = inputs.prior
    singles = int(np.count_nonzero(prior.sizes == 1))
    branches = int(np.count_nonzero(order.branches(prior) >= 0))
    origin = "read from its file" if inputs.has_tree else "built over the codebook for these pages"
    return {
        "codes": f"{prior.num_codes:,}",
        "clusters": f"{prior.num_clusters:,}: {singles:,} of one code, the largest of "
        f"{prior.sizes.max():,}",
        "tree": f"{origin}; {branches:,} of the clusters are branches of it",
        "squares": f"means over {config.shuffles} random neighbourhoods, seed {config.seed}",
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        with writing(folder / name):
            atomic_write(folder / name, content)
