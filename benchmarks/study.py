"""Ask the paper's question at a small scale: which prior, decoding and loss, all else equal.

::

    python benchmarks/study.py                       all runs, the main ones first
    python benchmarks/study.py flat masc masc-seed1  these alone
    python benchmarks/study.py --time                seconds an image of what was trained here
    python benchmarks/study.py --report              the tables of what there is

Codes and classifier come from the configurations, and are made if they are not there yet; so does
the tokenizer where there is a ``tokenizer.toml``. Every run has the same transformer, steps, images
and order of them; what differs is in `RUNS`. A run that was interrupted goes on where it was.
Fréchet distance, precision and recall are in features of a classifier of the real images, since
Inception's weights are not everybody's: they are no FID.

``--time`` asks for a machine that does nothing else; training and evaluations share theirs.

Written are ``study.md``, its plots, ``study.json`` and, in ``study/``, the records of every run:
configuration, log and figures. The report is made of the records alone, and a run that has its
records is not repeated, wherever it was trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from study_report import (  # benchmarks/study_report.py
    FINE_BITS,
    entropy_curves,
    report_of,
    training_curves,
    with_tables,
)

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ConfigError
from masc_core.io.files import atomic_write, read_json, write_json
from masc_core.prior import ClusterMap
from masc_core.sampling.params import Decoding
from training.config import load_config, may_change
from training.data.code_cache import CodeCache
from training.data.images import open_images
from training.loop.progress import progress
from training.metrics.bundle_metrics import default_params, seconds_per_image
from training.metrics.classifier import CLASSIFIER_FILE
from training.metrics.cluster_bits import code_counts, count_cached_pairs, frequency_bits
from training.stages.align import align_transformer
from training.stages.classifier import train_classifier
from training.stages.codes import extract_codes
from training.stages.completer import train_completer
from training.stages.configs import (
    AlignConfig,
    ClassifierConfig,
    CodesConfig,
    CompleterTrainingConfig,
    EvaluateConfig,
    EvaluateTokenizerConfig,
    PriorConfig,
    PublishConfig,
    RefinerTrainingConfig,
    TokenizerTrainingConfig,
    TransformerTrainingConfig,
)
from training.stages.evaluate import evaluate
from training.stages.evaluate_tokenizer import evaluate_tokenizer
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.refiner import train_refiner
from training.stages.tokenizer import train_tokenizer
from training.stages.transformer import train_transformer
from training.studies.acceleration import acceleration, read_curve

BITS_FILE = "bits.json"
REAL_FILE = "real.json"
SECONDS_FILE = "seconds.json"
RECORDED = ("config.json", "log.jsonl", "evaluation.json")


@dataclass(frozen=True)
class Partition:
    """A way to make clusters: K = V / ``codes_a_cluster``."""

    method: str
    codes_per_cluster: int


@dataclass(frozen=True)
class Run:
    """What one transformer is trained with.

    Attributes
    ----------
    prior : its vocabulary; the codes themselves without one
    decodings : ways from a cluster to a code that are measured
    levels : partitions that its loss knows besides
    aligned : run whose transformer is aligned, instead of training one; it is of the same prior
    seed : of weights, order of images, and what is random in the prior
    """

    prior: Partition | None = None
    decodings: tuple[Decoding, ...] = ("uniform",)
    levels: tuple[Partition, ...] = ()
    aligned: str | None = None
    seed: int = 0


def _half(method: str) -> Partition:
    return Partition(method, 2)


PLAIN: tuple[Decoding, ...] = ("uniform", "frequency")
# In this order, so that each further run adds to what can be said.
RUNS: Mapping[str, Run] = {
    "flat": Run(),
    "kmeans++": Run(_half("kmeans++"), PLAIN),
    "masc": Run(_half("average"), (*PLAIN, "refine")),
    "ward": Run(_half("ward"), PLAIN),
    "ctf-masc": Run(Partition("average", 8), (*PLAIN, "complete")),
    "ctf-kmeans++": Run(Partition("kmeans++", 8), (*PLAIN, "complete")),
    "iar-masc": Run(levels=(Partition("average", 32),)),
    "iar-kmeans": Run(levels=(Partition("balanced-kmeans", 32),)),
    "flat-seed1": Run(seed=1),
    "kmeans++-seed1": Run(_half("kmeans++"), PLAIN, seed=1),
    "masc-seed1": Run(_half("average"), PLAIN, seed=1),
    "masc-aligned": Run(_half("average"), PLAIN, aligned="masc"),
    "levels": Run(levels=(Partition("average", 8), Partition("average", 32))),
    "random": Run(_half("random"), PLAIN),
    "kmeans": Run(_half("kmeans"), PLAIN),
    "balanced": Run(_half("balanced-kmeans"), PLAIN),
    "complete": Run(_half("complete"), PLAIN),
    "centroid": Run(_half("centroid"), PLAIN),
    "masc-4": Run(Partition("average", 4), PLAIN),
    "kmeans++-4": Run(Partition("kmeans++", 4), PLAIN),
    "ctf-masc-32": Run(Partition("average", 32), (*PLAIN, "complete")),
    "ctf-kmeans++-32": Run(Partition("kmeans++", 32), (*PLAIN, "complete")),
}
TIMED_IMAGES, GUIDED_SCALE = 15, 2.0
RESAMPLES = 25  # of the generated images, for the error of a Fréchet distance


class Study:
    """Trains and measures runs.

    Parameters
    ----------
    configs : folder of the stages' configurations
    folder : of what is trained
    records : folder of what is kept of each run
    device : of all stages
    epochs : of the transformers; None as configured
    cfg_scales : at which all are measured; the first is the common one
    images_per_class : that are generated for a measurement
    efficientnet : whether ImageNet's judges at the common scale and decoding, too: it is slow
    """

    def __init__(
        self,
        configs: Path,
        folder: Path,
        records: Path,
        device: str,
        epochs: int | None,
        cfg_scales: tuple[float, ...],
        images_per_class: int,
        *,
        efficientnet: bool,
    ) -> None:
        self.configs, self.folder, self.records, self.device = configs, folder, records, device
        self.changes = {} if epochs is None else {"epochs": epochs}
        self.cfg_scales, self.images_per_class = cfg_scales, images_per_class
        self.efficientnet = efficientnet

    @property
    def common(self) -> tuple[str, float]:
        """Decoding and CFG scale that every run has."""
        return "uniform", self.cfg_scales[0]

    @property
    def judge(self) -> Path:
        """The classifier, kept beside the records: whoever adds a run has it judged by the same."""
        return self.records / "classifier"

    def config(self, stage: Any, file: str, **changes: object) -> Any:  # noqa: ANN401 - any stage's
        """A stage's configuration from its file, on the study's device."""
        return load_config(stage, self.configs / file, {"device": self.device, **changes})

    def train_shared(self) -> None:
        """Train what all runs share."""
        if (self.configs / "tokenizer.toml").exists():
            with progress("tokenizer") as report:
                train_tokenizer(self.config(TokenizerTrainingConfig, "tokenizer.toml"), report)
        for file in ("codes.toml", "codes-val.toml"):
            with progress(file) as report:
                extract_codes(self.config(CodesConfig, file), report)
        if not self.judge.exists():
            trained = self.config(ClassifierConfig, "classifier.toml")
            with progress("classifier") as report:
                train_classifier(trained, report)
            unfinished = self.judge.with_suffix(".unfinished")
            unfinished.mkdir(parents=True, exist_ok=True)
            for file in (CLASSIFIER_FILE, "config.json", "metrics.json"):
                shutil.copyfile(trained.out / file, unfinished / file)
            unfinished.rename(self.judge)

    def measure(self, name: str, run: Run) -> None:
        """Train a run, measure it with each decoding at each CFG scale, and keep its records."""
        bits = self.train(name, run)
        for decoding in run.decodings:
            for cfg_scale in self.cfg_scales:
                out = self.folder / name / f"{decoding}-cfg{cfg_scale:g}"
                if not (out / "evaluation.json").exists():
                    self._evaluate(name, decoding, cfg_scale, out)
        for file in self.folder.joinpath(name).rglob("*.json*"):
            path = file.relative_to(self.folder)
            if path.name in RECORDED:
                (self.records / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, self.records / path)
        write_json(self.records / name / BITS_FILE, bits)

    def measure_real(self) -> None:
        """Measure training images, as they are and through the tokenizer."""
        file = self.records / REAL_FILE
        if file.exists():
            return
        codes = self.config(CodesConfig, "codes.toml")
        config = EvaluateTokenizerConfig(
            tokenizer=codes.tokenizer,
            data=codes.data,
            image_size=codes.image_size,
            images=self.images_per_class * len(open_images(codes.data, codes).class_names),
            reference=self.config(ClassifierConfig, "classifier.toml").val_data,
            reference_features=self.folder / "reference",
            classifier=self.judge,
            efficientnet=self.efficientnet,
            resamples=RESAMPLES,
            device=self.device,
            exif_orientation=codes.exif_orientation,
            background=codes.background,
        )
        with progress("real images") as report:
            found = evaluate_tokenizer(config, report)
        through = {key: value for key, value in found.items() if isinstance(value, float | int)}
        seen = {"images": found["images"], **found["originals"]}
        rows = [("real images", seen), ("through the tokenizer", through)]
        write_json(file, [{"run": name, "decoding": "", **row} for name, row in rows])

    def is_finished(self, name: str) -> bool:
        """Whether a run has the records of all its decodings and CFG scales."""
        files = [
            self.evaluation(name, decoding, cfg_scale)
            for decoding in RUNS[name].decodings
            for cfg_scale in self.cfg_scales
        ]
        return all(file.exists() for file in [self.records / name / BITS_FILE, *files])

    def evaluation(self, name: str, decoding: str, cfg_scale: float) -> Path:
        """The record of an evaluation."""
        return self.records / name / f"{decoding}-cfg{cfg_scale:g}" / "evaluation.json"

    def check_records(self) -> None:
        """Raise a `ConfigError` where a finished run had another transformer or training."""
        planned = self.config(TransformerTrainingConfig, "transformer.toml")
        planned = planned.model_copy(update=self.changes)
        alike = type(planned).model_fields.keys() - may_change(planned) - {"seed", "init"}
        wanted = planned.model_dump(mode="json", include=alike)
        for name, run in RUNS.items():
            if run.aligned is None and self.is_finished(name):
                file = self.records / name / "transformer" / "config.json"
                found = read_json(file)
                # A key that came later is in no older record.
                differ = {key for key in alike & found.keys() if found[key] != wanted[key]}
                common = read_json(self.evaluation(name, *self.common))["settings"]
                if common["images_per_class"] != self.images_per_class:
                    differ.add("images_per_class")
                if other := sorted(differ):
                    raise ConfigError(
                        f"{file}: was made with another {', '.join(other)}; give another --out"
                    )

    def train(self, name: str, run: Run) -> dict[str, float]:
        """Train and publish what there is not yet; validation bits of a code by decoding."""
        folder = self.folder / name
        prior = None if run.prior is None else self._prior(run.prior, run.seed)
        parts: dict[str, Any] = {"transformer": folder / "transformer", "prior": prior}
        file = prior and prior / "prior.npz"
        levels = tuple(self._prior(level, run.seed) / "prior.npz" for level in run.levels)
        if run.aligned is not None:  # its records may be there without what was trained
            self.train(run.aligned, RUNS[run.aligned])
        changes = {"out": parts["transformer"], "seed": run.seed}
        update: dict[str, Any] = {"prior": file, "partitions": levels}
        with progress(f"{name}: transformer") as report:
            if run.aligned is None:
                trained = self.config(TransformerTrainingConfig, "transformer.toml", **changes)
                trained = trained.model_copy(update=update | self.changes)
                metrics = train_transformer(trained, report)
            else:
                aligned = self.config(AlignConfig, "align.toml", **changes)
                update["init"] = str(self.folder / run.aligned / "transformer")
                metrics = align_transformer(aligned.model_copy(update=update), report)
        bits = {"uniform": metrics[FINE_BITS], "cluster": metrics["bits_per_position"]}
        if "frequency" in run.decodings and prior is not None:
            clusters = ClusterMap.load(prior / "prior.npz")
            counts = [code_counts(pairs) for pairs in self._pairs]
            bits["frequency"] = bits["cluster"] + frequency_bits(clusters, *counts)
        if "refine" in run.decodings:
            parts["refiner"] = folder / "refiner"
            changes = {
                "out": parts["refiner"],
                "prior": file,
                "transformer": parts["transformer"] / "transformer.safetensors",
            }
            with progress(f"{name}: refiner") as report:
                metrics = train_refiner(
                    self.config(RefinerTrainingConfig, "refiner.toml", **changes), report
                )
            bits["refine"] = bits["cluster"] + metrics["in_cluster_bits"]
        if "complete" in run.decodings:
            parts["completer"] = folder / "completer"
            changes = {"out": parts["completer"], "prior": file}
            with progress(f"{name}: completer") as report:
                metrics = train_completer(
                    self.config(CompleterTrainingConfig, "completer.toml", **changes), report
                )
            bits["complete"] = bits["cluster"] + metrics["in_cluster_bits"]
        self._publish(name, parts)
        return bits

    @cached_property
    def _pairs(self) -> list[Any]:
        """Pairs of codes of the training and of the validation images."""
        files = ("codes.toml", "codes-val.toml")
        return [
            count_cached_pairs(CodeCache.open(self.config(CodesConfig, file).out)) for file in files
        ]

    def _prior(self, partition: Partition, seed: int) -> Path:
        """Folder of a prior, built once."""
        index = CodeCache.open(self.config(CodesConfig, "codes.toml").out).index
        num_clusters = index.num_codes // partition.codes_per_cluster
        folder = self.folder / "priors" / f"{partition.method}-{num_clusters}-{seed}"
        if not (folder / "prior.npz").exists():
            changes = {"out": folder, "method": partition.method, "seed": seed}
            with progress(folder.name) as report:
                file, count = "prior.toml", {"num_clusters": num_clusters}
                build_prior(self.config(PriorConfig, file, **changes, **count), report)
        return folder

    def _publish(self, name: str, parts: Mapping[str, Any]) -> None:
        """Publish a run as a model of its own, once."""
        models = self.folder / "models"
        if (models / model_name(name) / "1").exists():
            return
        base = self.config(
            PublishConfig, "publish.toml", name=model_name(name), version="1", models=models
        )
        none = {"refiner": None, "completer": None, "classifier": None}
        update = {**none, **parts, "activate": True, "decoding": "uniform"}
        with progress(f"{name}: publish") as report:
            publish(base.model_copy(update=update), report)

    def _evaluate(self, name: str, decoding: str, cfg_scale: float, out: Path) -> None:
        val_data = self.config(ClassifierConfig, "classifier.toml").val_data
        real_codes = self.config(CodesConfig, "codes-val.toml").out
        with progress(f"{name}: {decoding}, CFG {cfg_scale:g}") as report:
            evaluate(
                EvaluateConfig(
                    models=self.folder / "models",
                    model=model_name(name),
                    images_per_class=self.images_per_class,
                    cfg_scale=cfg_scale,
                    decoding=decoding,
                    classifier=self.judge,
                    reference=val_data,
                    codes=real_codes if (decoding, cfg_scale) == self.common else None,
                    out=out,
                    reference_features=self.folder / "reference",
                    resamples=RESAMPLES,
                    efficientnet=self.efficientnet and (decoding, cfg_scale) == self.common,
                    device=self.device,
                ),
                report,
            )

    def time(self, names: Iterable[str]) -> None:
        """Measure seconds an image of the finished runs whose models are here.

        Each decoding without guidance and with it, at whatever scale: it costs a second row.
        """
        registry = Registry(self.folder / "models")
        device = resolve_device(self.device)
        bundles = {
            name: load_bundle(registry.path(model_name(name)), device, choose_dtype("auto", device))
            for name in names
            if self.is_finished(name) and model_name(name) in registry.names()
        }
        taken: dict[tuple[str, str, float], list[float]] = {}
        for _ in range(TIMED_IMAGES):  # in turns, since machines are slower at times
            for name, bundle in bundles.items():
                for decoding, scale in product(RUNS[name].decodings, (1.0, GUIDED_SCALE)):
                    params = replace(default_params(bundle), decoding=decoding, cfg_scale=scale)
                    found = seconds_per_image(bundle, 1, params)["seconds_per_image"]
                    taken.setdefault((name, decoding, scale), []).append(found)
        for name in bundles:
            seconds: dict[str, Any] = {"threads": torch.get_num_threads()}
            for (run, way, scale), values in taken.items():
                if run == name:
                    seconds.setdefault(way, {})[_guided(scale)] = median(values)
            write_json(self.records / name / SECONDS_FILE, seconds)
            print(name, seconds, flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """Metrics of every decoding and CFG scale of the runs that are finished."""
        rows = []
        for name, run in RUNS.items():
            if not self.is_finished(name):
                continue
            bits, teacher_forced = read_json(self.records / name / BITS_FILE), {}
            timed = self.records / name / SECONDS_FILE
            seconds = read_json(timed) if timed.exists() else {}
            for decoding in run.decodings:
                for cfg_scale in self.cfg_scales:
                    found = read_json(self.evaluation(name, decoding, cfg_scale))
                    if (decoding, cfg_scale) == self.common:  # with the images' own codes
                        names = ("teacher_forced_entropy_ratio", "curves")
                        teacher_forced = {key: found[key] for key in names}
                    # Taken beside whatever else the machine did.
                    del found["seconds_per_image"], found["seconds_per_image_threads"]
                    if decoding in seconds:
                        found["seconds_per_image"] = seconds[decoding][_guided(cfg_scale)]
                        found["seconds_per_image_threads"] = seconds["threads"]
                    rows.append(
                        {
                            **found,
                            **teacher_forced,
                            "run": name,
                            "decoding": decoding,
                            "cfg_scale": cfg_scale,
                            "bits": bits[decoding],
                            "cluster_bits": bits["cluster"],
                            **self._epochs_to_flat(name),
                        }
                    )
        return rows

    def _epochs_to_flat(self, name: str) -> dict[str, float | None]:
        """Epochs after which a run's bits a code are at most flat's at its end; None: not yet."""
        if not self.is_finished("flat"):
            return {}
        curves = [read_curve(self.records / n / "transformer", FINE_BITS) for n in ("flat", name)]
        return {"epochs_to_flat": acceleration(*curves).epoch}


def _guided(cfg_scale: float) -> str:
    """Key of the time of an image: any guidance takes a second row."""
    return "unguided" if cfg_scale == 1 else "guided"


def model_name(run: str) -> str:
    """Name of the model that a run is published as."""
    return run.replace("+", "p")


def main() -> None:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description="priors, decodings and losses, all else equal")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all")
    parser.add_argument("--configs", type=Path, default=Path("training/configs/study"))
    parser.add_argument("--folder", type=Path, help="of what is trained; runs/ and --configs' name")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--cfg-scales", type=float, nargs="+", default=[2.0, 1.0, 3.0, 4.0, 6.0])
    parser.add_argument("--images-per-class", type=int, default=200)
    parser.add_argument("--efficientnet", action="store_true", help="a second judge")
    parser.add_argument("--time", action="store_true", help="train nothing, time what is there")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if unknown := set(options.runs) - RUNS.keys():
        parser.error(f"no run is called {', '.join(sorted(unknown))}")
    study = Study(
        options.configs,
        options.folder or Path("runs") / options.configs.name,
        options.out / "study",
        options.device,
        options.epochs,
        tuple(options.cfg_scales),
        options.images_per_class,
        efficientnet=options.efficientnet,
    )
    try:
        study.check_records()
    except ConfigError as error:
        parser.error(str(error))
    if options.time:
        study.time(options.runs or RUNS)
    wanted = [] if options.report or options.time else options.runs or RUNS
    chosen = [name for name in RUNS if name in wanted and not study.is_finished(name)]
    if chosen:
        study.train_shared()
        study.measure_real()
    durations: list[float] = []
    for number, name in enumerate(chosen):
        left = ""
        if durations:
            left = f", {np.mean(durations) * (len(chosen) - number) / 3600:.1f} h left"
        print(f"{name}: run {number + 1} of {len(chosen)}{left}", flush=True)
        started = time.monotonic()
        study.measure(name, RUNS[name])
        durations.append(time.monotonic() - started)
        write_report(study, options.out)
    if not chosen:
        write_report(study, options.out)


def write_report(study: Study, out: Path) -> None:
    """Write what is finished: tables, plots, records."""
    rows = study.rows()
    if not rows:
        return
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "study.json", (json.dumps(rows, indent=1) + "\n").encode())
    real = read_json(study.records / REAL_FILE)
    place = out / "study.md"
    text = place.read_text() if place.exists() else ""
    atomic_write(place, with_tables(text, report_of(rows, real)).encode())
    names = list(dict.fromkeys(row["run"] for row in rows))
    atomic_write(out / "study-training.png", training_curves(study.records, names))
    atomic_write(out / "study-entropy.png", entropy_curves(rows))


if __name__ == "__main__":
    main()
