"""The runs that a model is made of: their weights, figures and origin, and whether they fit.

Every run names by hash what it was trained from, so parts that do not belong together are refused
however much their sizes agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    read_manifest,
)
from masc_core.bundle.write import BundleParts
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.models.weights import load_refiner, load_transformer, read_inputs
from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache, CodeIndex
from training.studies.codebook_source import TrainedTokenizer

TOKENIZER_METRICS = {"psnr", "ssim", "lpips", "codebook_usage"}  # that a bundle's tokenizer keeps


@dataclass(frozen=True, slots=True)
class TrainedRuns:
    """Folders of the runs.

    Attributes
    ----------
    tokenizer : of the tokenizer run, or of the bundle whose tokenizer made the codes
    prior : None for the flat vocabulary
    codes : cache of the training images
    transformer : of the transformer run
    refiner : of the refiner run, if there is one
    """

    tokenizer: Path
    prior: Path | None
    codes: Path
    transformer: Path
    refiner: Path | None = None

    def load(self) -> tuple[BundleParts, tuple[str, ...]]:
        """What a bundle is made of, and the names of the classes.

        Raises
        ------
        ArtifactError
            A part is missing or damaged.
        ConfigError
            The parts do not belong together.
        """
        tokenizer = TrainedTokenizer.open(
            self.tokenizer if self._is_bundle else self.tokenizer / TOKENIZER_FILE
        )
        cache = CodeCache.open(self.codes)
        if self.prior is None:
            prior = ClusterMap.identity(tokenizer.model.config.num_codes)
        else:
            prior = ClusterMap.load(self.prior / PRIOR_FILE)
        model = load_transformer(self.transformer / TRANSFORMER_FILE)
        refiner = None if self.refiner is None else load_refiner(self.refiner / REFINER_FILE)
        self._check_origin(tokenizer.sha256, cache.index)
        parts = BundleParts(model, tokenizer.model, prior, cache.counts(), refiner=refiner)
        return parts, cache.index.class_names

    def metrics(self) -> dict[str, JsonValue]:
        """What the runs measured on validation images; those of the refiner under its name."""
        found = self._tokenizer_metrics() | read_figures(self.transformer / "metrics.json")
        if self.refiner is not None:
            found["refiner"] = _without_objective(read_figures(self.refiner / "metrics.json"))
        return _without_objective(found)

    def provenance(self) -> dict[str, JsonValue]:
        """How the parts were trained, from what, and what came of it."""
        transformer = self.transformer / TRANSFORMER_FILE
        weights = {
            "tokenizer": sha256_file(self.tokenizer / TOKENIZER_FILE),
            "transformer": sha256_file(transformer),
        }
        found: dict[str, Any] = {
            "tokenizer": self._tokenizer_origin(),
            "transformer": read_figures(self.transformer / "config.json")
            | {"inputs": read_inputs(transformer)},
        }
        if self.refiner is not None:
            weights["refiner"] = sha256_file(self.refiner / REFINER_FILE)
            found["refiner"] = read_figures(self.refiner / "config.json") | {
                "inputs": read_inputs(self.refiner / REFINER_FILE)
            }
        return found | {"trained_weights": weights}

    @property
    def _is_bundle(self) -> bool:
        return (self.tokenizer / MANIFEST_FILE).is_file()

    def _check_origin(self, tokenizer: str, codes: CodeIndex) -> None:
        """Raise unless all comes from this tokenizer and prior, the refiner from both models."""
        if codes.tokenizer_sha256 != tokenizer:
            raise ConfigError("codes: were made by another tokenizer")
        prior = "identity" if self.prior is None else sha256_file(self.prior / PRIOR_FILE)
        made_from = {"tokenizer": tokenizer, "prior": prior}
        transformer = self.transformer / TRANSFORMER_FILE
        if not made_from.items() <= read_inputs(transformer).items():
            raise ConfigError("transformer: was trained with another tokenizer or another prior")
        if read_inputs(transformer).get("codes") != codes.files_sha256:
            raise ConfigError("codes: are of other images than the transformer was trained on")
        if self.refiner is None:
            return
        made_from["transformer"] = sha256_file(transformer)
        if not made_from.items() <= read_inputs(self.refiner / REFINER_FILE).items():
            raise ConfigError(
                "refiner: was trained with another transformer, another tokenizer or another prior"
            )

    def _tokenizer_origin(self) -> dict[str, Any]:
        if not self._is_bundle:
            return read_figures(self.tokenizer / "config.json")
        manifest = read_manifest(self.tokenizer)
        return {
            "bundle": f"{manifest.name} {manifest.version}",
            "provenance": manifest.provenance.get("tokenizer"),
        }

    def _tokenizer_metrics(self) -> dict[str, Any]:
        if not self._is_bundle:
            return read_figures(self.tokenizer / "metrics.json")
        metrics = read_manifest(self.tokenizer).metrics
        return {key: metrics[key] for key in TOKENIZER_METRICS & metrics.keys()}


def read_figures(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises
    ------
    ConfigError
        It cannot be read, or holds what is not a figure.
    """
    try:
        value = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); is the run finished?") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no names with values")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a figure")


def _without_objective(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "objective"}
