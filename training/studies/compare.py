"""Compare priors: which codes they join, what naming a cluster costs, what an image loses.

::

    masc prior compare training/configs/cifar10/compare.toml

Writes ``priors.json`` (everything), ``priors.md`` (tables), ``sizes.png``, ``rate_distortion.png``
and every prior that was built as ``<method>-<K>.npz``: all at the end, so that an interrupted run
leaves what was there.

Legend: N images, S pixels a side, V codes, K clusters.
"""

from __future__ import annotations

from pydantic import JsonValue
from scipy.sparse import csr_array

from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import Pixels
from masc_core.io.files import atomic_write, sha256_file
from masc_core.sampling.in_cluster import MODES
from training.config import set_threads
from training.data.source import LabelledImages
from training.loop.lock import lock_folder
from training.loop.progress import Report, no_report
from training.metrics.cluster_bits import code_counts, count_cached_pairs, count_pairs
from training.metrics.prior_measurement import Comparison, Impossible, PriorMeasurement, PriorResult
from training.metrics.semantic_replacement import ReplacementTest, encode_images
from training.stages.configs import LEAST_IMAGES, CompareConfig
from training.studies.candidate_priors import Candidate, CandidateBuilder
from training.studies.compare_inputs import CompareInputs
from training.studies.compare_plots import rate_distortion_plot, size_plot
from training.studies.compare_report import as_json, as_markdown

# Without a code cache, every other image: both halves hold all classes.
MEASURED, FITTED = slice(0, None, 2), slice(1, None, 2)


def compare_priors(config: CompareConfig, report: Report = no_report) -> Comparison:
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
        steps = _Steps(config, inputs, report)
        fitted, pixels = _split(inputs, images.pixels)
        test = ReplacementTest(inputs.model, pixels, draws=config.draws, seed=config.seed)
        steps.take(1, f"{len(images.pixels)} images encoded, {len(images.skipped)} skipped")
        built = _build(config, inputs, steps)
        measurement = PriorMeasurement(inputs.rows, fitted, test)
        comparison = Comparison(
            flat=measurement.flat(),
            rows=tuple(_measure(each, measurement, steps) for each in (*built, *inputs.given)),
            provenance=_provenance(inputs, images, fitted, test),
            config=config.model_dump(mode="json"),
        )
        _write(config, comparison, built)
    return comparison


class _Steps:
    """Counts what is done: the encoding, every prior built, every draw of every decoding."""

    def __init__(self, config: CompareConfig, inputs: CompareInputs, report: Report) -> None:
        candidates = len(config.methods) * len(inputs.num_clusters)
        self.tests = len(MODES) * config.draws
        self._total = 1 + candidates + (candidates + len(inputs.given)) * self.tests
        self._done, self._report = 0, report

    def take(self, steps: int, text: str) -> None:
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


def _build(config: CompareConfig, inputs: CompareInputs, steps: _Steps) -> list[Candidate]:
    built = []
    builder = CandidateBuilder(inputs.rows, config.seed)
    for candidate in builder.build(config.methods, inputs.num_clusters):
        built.append(candidate)
        steps.take(1, f"{candidate.method}, K = {candidate.num_clusters}: built")
    if not inputs.given and all(candidate.prior is None for candidate in built):
        raise ConfigError(f"methods: none is possible, as {built[0].method}: {built[0].reason}")
    return built


def _measure(
    candidate: Candidate, measurement: PriorMeasurement, steps: _Steps
) -> PriorResult | Impossible:
    name = f"{candidate.method}, K = {candidate.num_clusters}"
    if candidate.prior is None:
        steps.take(steps.tests, f"{name}: not possible")
        return Impossible(candidate.method, candidate.num_clusters, candidate.reason)
    return measurement.measure(
        candidate.method, candidate.prior, candidate.file, lambda: steps.take(1, name)
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
        "sizes.png": size_plot(comparison),
        "rate_distortion.png": rate_distortion_plot(comparison),
        "priors.md": as_markdown(comparison),
        "priors.json": as_json(comparison),
    }
    for candidate in built:
        if candidate.prior is not None:
            candidate.prior.save(config.out / candidate.file)
    for name, content in contents.items():
        atomic_write(config.out / name, content)
