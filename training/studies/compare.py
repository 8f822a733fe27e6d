"""Compare priors: which codes they join, what naming a cluster costs, what an image loses.

::

    masc prior compare training/configs/cifar10/compare.toml

Writes ``priors.json`` (everything), ``priors.md`` (tables), ``sizes.png``, ``rate_distortion.png``
and every prior that was built as ``<method>-<K>.npz``: all at the end, so that an interrupted run
leaves what was there.

Legend: N images, S pixels a side, L positions, V codes, K clusters, E code dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy.sparse import csr_array

from masc_core.clustering.centroid_linkage import centroid_linkage
from masc_core.clustering.methods import cluster_codes, random_partition
from masc_core.device import resolve_device
from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import Pixels
from masc_core.io.files import atomic_write, sha256_file
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.in_cluster import MODEL_FREE_DECODINGS
from masc_core.semantic_tree import LeafOrder, cut_merges
from masc_core.tree import LINKAGES, Linkage, SemanticTree, build_tree
from training.config import set_threads
from training.data.code_cache import CodeCache, with_cached_options
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.data.prior_source import prior_file, read_prior
from training.data.source import LabelledImages
from training.loop.run_dir import lock_folder
from training.metrics.cluster_bits import code_counts, count_cached_pairs, count_pairs
from training.metrics.prior_measurement import Comparison, Impossible, PriorMeasurement, PriorResult
from training.metrics.semantic_replacement import ReplacementTest, encode_images
from training.plot_png import png_bytes
from training.stages.configs import LEAST_IMAGES, CompareConfig
from training.studies.compare_report import (
    as_json,
    as_markdown,
    draw_rate_distortion,
    draw_sizes,
)

# Without a code cache, every other image: both halves hold all classes.
MEASURED, FITTED = slice(0, None, 2), slice(1, None, 2)


def compare_priors(config: CompareConfig, report: ProgressCallback = no_progress) -> Comparison:
    """Run the stage.

    Raises
    ------
    ConfigError
        Inputs that do not belong together, or that are impossible; names the key.
    ArtifactError
        A file is missing or damaged, or too few images can be read.
    """
    set_threads(config.threads)
    inputs = CompareInputs(config)
    with lock_folder(config.out):
        images = _read_images(config, inputs)
        progress = _Progress(config, inputs, report)
        fitted, pixels = _split(inputs, images.pixels)
        test = ReplacementTest(
            inputs.model,
            pixels,
            draws=config.draws,
            seed=config.seed,
            positions=slice(*config.positions) if config.positions else slice(None),
        )
        progress.add(1, f"{len(images.pixels)} images encoded, {len(images.skipped)} skipped")
        built = _build(config, inputs, progress)
        measurement = PriorMeasurement(inputs.rows, fitted, test)
        comparison = Comparison(
            flat=measurement.flat(),
            rows=tuple(_measure(each, measurement, progress) for each in (*built, *inputs.given)),
            provenance=_provenance(inputs, images, fitted, test),
            config=inputs.config.model_dump(mode="json"),
        )
        _write(config, comparison, built)
    return comparison


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prior, or why there is none: not every method makes every K.

    Attributes
    ----------
    method : one of `CANDIDATES`, or the name of a prior that was made elsewhere
    num_clusters : the K asked for
    file : where the prior lies, or is to lie within a folder
    prior : None where the method cannot make it
    reason : why not
    """

    method: str
    num_clusters: int
    file: str
    prior: ClusterMap | None
    reason: str = ""


class CandidateBuilder:
    """Builds priors over one codebook (V, E): a tree is built once and cut at every K.

    Everything runs on the CPU, so that a machine with a GPU finds the same clusters.
    """

    def __init__(self, rows: NDArray[np.float64], seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._trees: dict[Linkage, SemanticTree] = {}

    def build(self, methods: Sequence[str], num_clusters: Sequence[int]) -> Iterator[Candidate]:
        """Every method at every K, the methods of one K together."""
        for count in num_clusters:
            for method in methods:
                yield self._candidate(method, count)

    def _candidate(self, method: str, num_clusters: int) -> Candidate:
        file = f"{method}-{num_clusters}.npz"
        try:
            return Candidate(method, num_clusters, file, self._prior(method, num_clusters))
        except ValueError as error:
            return Candidate(method, num_clusters, file, None, str(error))

    def _prior(self, method: str, num_clusters: int) -> ClusterMap:
        if method in LINKAGES:
            return self._tree(cast("Linkage", method)).cut(num_clusters)
        match method:
            case "leaf-order":
                return LeafOrder.of(self._tree("average")).chunks(num_clusters)
            case "centroid":
                return cut_merges(self._centroid_merges, num_clusters)
            case "average-shuffled":
                sizes = self._tree("average").cut(num_clusters).sizes
                return random_partition(len(self._rows), num_clusters, self._seed, sizes)
        return cluster_codes(self._rows, num_clusters, method, seed=self._seed)

    def _tree(self, linkage: Linkage) -> SemanticTree:
        if linkage not in self._trees:
            self._trees[linkage] = build_tree(self._rows, linkage)
        return self._trees[linkage]

    @cached_property
    def _centroid_merges(self) -> NDArray[np.float64]:
        return centroid_linkage(self._rows)


class CompareInputs:
    """What the keys name, opened; whatever is wrong with it is found before anything takes long.

    Attributes
    ----------
    config : with the image options of the cache, where there is one
    model : the tokenizer, in evaluation mode on the device of the configuration
    rows : float64 (V, E), what is clustered
    num_clusters : every K
    given : priors from files, named by them
    folder : the images
    cache : codes of the training images, if there is one
    """

    def __init__(self, config: CompareConfig) -> None:
        device = resolve_device(config.device)
        tokenizer = TrainedTokenizer.open(config.tokenizer, with_encoder=True)
        model, self.tokenizer_sha256 = tokenizer.model, tokenizer.sha256
        self.num_codes = model.config.num_codes
        self.num_positions = model.config.grid_size(config.image_size) ** 2
        if config.positions and config.positions[1] > self.num_positions:
            raise ConfigError(f"positions: an image has {self.num_positions}")
        self.num_clusters = config.num_clusters or _usual_clusters(self.num_codes)
        if max(self.num_clusters) > self.num_codes:
            raise ConfigError(
                f"num_clusters: {max(self.num_clusters)} of {self.num_codes} codes is impossible"
            )
        if not config.methods and not config.priors:
            raise ConfigError("methods: there is nothing to compare")
        self.given = tuple(self._load_prior(path) for path in config.priors)
        cache = None if config.codes is None else CodeCache.open(config.codes)
        self.config = config if cache is None else with_cached_options(cache.index, config)
        self.folder = open_images(config.images, self.config)
        self.cache = None if cache is None else self._checked(cache)
        self.rows = tokenizer.rows(raw=config.raw_rows)
        self.model = model.to(device)

    def _load_prior(self, path: Path) -> Candidate:
        file = prior_file(path)
        prior = read_prior(file)
        if prior.num_codes != self.num_codes:
            raise ConfigError(
                f"priors: {path} is over {prior.num_codes} codes, "
                f"the tokenizer has {self.num_codes}"
            )
        return Candidate(str(path), prior.num_clusters, str(file), prior)

    def _checked(self, cache: CodeCache) -> CodeCache:
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


class _Progress:
    """Counts what is done: the encoding, every prior built, every draw of every decoding."""

    def __init__(
        self, config: CompareConfig, inputs: CompareInputs, report: ProgressCallback
    ) -> None:
        candidates = len(config.methods) * len(inputs.num_clusters)
        self.tests = len(MODEL_FREE_DECODINGS) * config.draws
        self._total = 1 + candidates + (candidates + len(inputs.given)) * self.tests
        self._done, self._report = 0, report

    def add(self, steps: int, text: str) -> None:
        self._done += steps
        self._report(self._done, self._total, text)


def _read_images(config: CompareConfig, inputs: CompareInputs) -> LabelledImages:
    chosen = inputs.folder.spread(config.max_images)
    images = inputs.folder.read(config.image_size, chosen)
    if len(images.pixels) < LEAST_IMAGES:
        raise ArtifactError(config.images, f"fewer than {LEAST_IMAGES} images can be read")
    return images


def _split(inputs: CompareInputs, pixels: Pixels) -> tuple[csr_array, Pixels]:
    """Pairs of codes int64 (V+1, V) to fit to, and images uint8 (N, S, S, 3) to measure on."""
    if inputs.cache is not None:
        return count_cached_pairs(inputs.cache), pixels
    codes = encode_images(inputs.model, pixels[FITTED])
    return count_pairs(codes, inputs.num_codes), pixels[MEASURED]


def _build(config: CompareConfig, inputs: CompareInputs, progress: _Progress) -> list[Candidate]:
    built = []
    builder = CandidateBuilder(inputs.rows, config.seed)
    for candidate in builder.build(config.methods, inputs.num_clusters):
        built.append(candidate)
        progress.add(1, f"{candidate.method}, K = {candidate.num_clusters}: built")
    if not inputs.given and all(candidate.prior is None for candidate in built):
        raise ConfigError(f"methods: none is possible, as {built[0].method}: {built[0].reason}")
    return built


def _measure(
    candidate: Candidate, measurement: PriorMeasurement, progress: _Progress
) -> PriorResult | Impossible:
    name = f"{candidate.method}, K = {candidate.num_clusters}"
    if candidate.prior is None:
        progress.add(progress.tests, f"{name}: not possible")
        return Impossible(candidate.method, candidate.num_clusters, candidate.reason)
    return measurement.measure(
        candidate.method, candidate.prior, candidate.file, lambda: progress.add(1, name)
    )


def _provenance(
    inputs: CompareInputs, images: LabelledImages, fitted: csr_array, test: ReplacementTest
) -> dict[str, JsonValue]:
    cache = inputs.cache
    return {
        "tokenizer_sha256": inputs.tokenizer_sha256,
        "images_sha256": inputs.folder.fingerprint(),
        "codes_sha256": cache.index.files_sha256 if cache else None,
        "priors_sha256": {given.file: sha256_file(given.file) for given in inputs.given},
        "num_codes": inputs.num_codes,
        "num_positions": inputs.num_positions,
        "num_images": len(test.pixels),
        "draws": test.draws,
        "fitted_on": "the code cache" if cache else "the other half of the images",
        "fitted_positions": int(code_counts(fitted).sum()),
        "skipped": list(images.skipped),
    }


def _write(config: CompareConfig, comparison: Comparison, built: list[Candidate]) -> None:
    contents = {
        "sizes.png": png_bytes(draw_sizes(comparison)),
        "rate_distortion.png": png_bytes(draw_rate_distortion(comparison)),
        "priors.md": as_markdown(comparison),
        "priors.json": as_json(comparison),
    }
    for candidate in built:
        if candidate.prior is not None:
            candidate.prior.save(config.out / candidate.file)
    for name, content in contents.items():
        atomic_write(config.out / name, content)
