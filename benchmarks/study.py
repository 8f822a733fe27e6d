"""Ask the paper's question at a small scale: flat vocabulary, k-means or MASC, all else equal.

::

    python benchmarks/study.py --configs training/configs/cifar10 [--epochs 5] [--out docs/results]

Tokenizer, codes and classifier come from the configurations, and are trained if they are not yet.
Every variant has the same transformer, the same steps and the same images; only the prior differs,
and for MASC the way from a cluster to a code. The Fréchet distance is one in the features of the
classifier, since Inception's weights are not everybody's: it is not an FID. Written are
``study-<name>.json``, ``.md`` and two plots, whatever comes out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masc_core.io.files import atomic_write
from training.config import load_config
from training.loop.progress import progress
from training.plot_png import draw_curves, new_figure, png_bytes
from training.stages.classifier import train_classifier
from training.stages.codes import extract_codes
from training.stages.configs import (
    ClassifierConfig,
    CodesConfig,
    EvaluateConfig,
    PriorConfig,
    PublishConfig,
    RefinerTrainingConfig,
    TokenizerConfig,
    TransformerConfig,
)
from training.stages.evaluate import evaluate
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.refiner import train_refiner
from training.stages.tokenizer import train_tokenizer
from training.stages.transformer import train_transformer
from training.studies.acceleration import read_curve

METHODS: Mapping[str, str | None] = {"flat": None, "kmeans": "kmeans++", "masc": "average"}
DECODINGS = {"flat": ("uniform",), "kmeans": ("uniform", "frequency"),
             "masc": ("uniform", "frequency", "refine")}  # fmt: skip
COLUMNS = {
    "bits_per_position": "validation bits a position",
    "fine_cross_entropy_bits": "bits a code, uniform decoding",
    "teacher_forced_entropy_ratio": "entropy / log2 K, teacher-forced",
    "entropy_ratio": "entropy / log2 K, free-running",
    "class_agreement": "class agreement",
    "frechet_classifier_distance": "Fréchet distance in the classifier's features",
    "classifier_accuracy": "the classifier on real images",
}


@dataclass(frozen=True)
class Study:
    """Where things are, and how long training lasts."""

    configs: Path
    runs: Path
    device: str
    changes: dict[str, Any]
    cfg_scale: float
    images_per_class: int

    def config(self, stage: Any, file: str, **changes: object) -> Any:  # noqa: ANN401 - any stage's
        """A stage's configuration from its file, on the study's device."""
        return load_config(stage, self.configs / file, {"device": self.device, **changes})

    def shared(self) -> None:
        """Train what all variants share."""
        with progress("tokenizer") as report:
            train_tokenizer(self.config(TokenizerConfig, "tokenizer.toml"), report)
        for file in ("codes.toml", "codes-val.toml"):
            with progress(file) as report:
                extract_codes(self.config(CodesConfig, file), report)
        with progress("classifier") as report:
            train_classifier(self.config(ClassifierConfig, "classifier.toml"), report)

    def variant(self, name: str) -> list[dict[str, Any]]:
        """Train and publish a variant, and measure it with each of its decodings."""
        folder, prior = self.runs / name, self.prior(name)
        file = None if prior is None else prior / "prior.npz"
        out = folder / "transformer"
        values = {"out": out, "prior": file, **self.changes}
        with progress(f"{name}: transformer") as report:
            transformer = self.config(TransformerConfig, "transformer.toml", out=out)
            train_transformer(transformer.model_copy(update=values), report)
        parts: dict[str, Any] = {"transformer": out, "prior": prior, "refiner": None}
        if name == "masc":
            parts["refiner"] = folder / "refiner"
            with progress("masc: refiner") as report:
                weights = out / "transformer.safetensors"
                train_refiner(
                    self.config(RefinerTrainingConfig, "refiner.toml", out=parts["refiner"],
                                prior=file, transformer=weights, **self.changes),
                    report)  # fmt: skip
        self.publish(name, parts)
        return [self.measure(name, decoding) for decoding in DECODINGS[name]]

    def prior(self, name: str) -> Path | None:
        """The variant's prior, with as many clusters as the configuration says."""
        method = METHODS[name]
        if method is None:
            return None
        folder = self.runs / name / "prior"
        if not (folder / "prior.npz").exists():
            with progress(f"{name}: prior") as report:
                file, where = "prior.toml", {"out": folder, "method": method}
                build_prior(self.config(PriorConfig, file, **where), report)
        return folder

    def publish(self, name: str, parts: dict[str, Any]) -> None:
        """Publish a variant as a model of its own, once."""
        models = self.runs / "models"
        if (models / name / "1").exists():
            return
        base = self.config(PublishConfig, "publish.toml", name=name, version="1", models=models)
        update = {**parts, "classifier": None, "activate": True, "decoding": "uniform"}
        with progress(f"{name}: publish") as report:
            publish(base.model_copy(update=update), report)

    def measure(self, name: str, decoding: str) -> dict[str, Any]:
        """Every metric of a variant under a decoding, once."""
        out = self.runs / name / f"evaluation-{decoding}"
        if not (out / "evaluation.json").exists():
            classifier = self.config(ClassifierConfig, "classifier.toml")
            with progress(f"{name}: {decoding}") as report:
                evaluate(
                    EvaluateConfig(
                        models=self.runs / "models",
                        model=name,
                        images_per_class=self.images_per_class,
                        cfg_scale=self.cfg_scale,
                        decoding=decoding,
                        classifier=classifier.out,
                        reference=classifier.val_data,
                        codes=self.config(CodesConfig, "codes-val.toml").out,
                        out=out,
                        device=self.device,
                    ),
                    report,
                )
        evaluation: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
        metrics = json.loads((self.runs / name / "transformer" / "metrics.json").read_text())
        return {"variant": name, "decoding": decoding, **metrics, **evaluation}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description="flat, k-means and MASC with all else equal")
    parser.add_argument("--configs", type=Path, default=Path("training/configs/cifar10"))
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--cfg-scale", type=float, default=2.0)
    parser.add_argument("--images-per-class", type=int, default=500)
    options = parser.parse_args()
    name = options.configs.name
    study = Study(
        options.configs,
        options.runs / name,
        options.device,
        {} if options.epochs is None else {"epochs": options.epochs},
        options.cfg_scale,
        options.images_per_class,
    )
    study.shared()
    rows = [row for variant in METHODS for row in study.variant(variant)]
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / f"study-{name}"
    atomic_write(base.with_suffix(".json"), (json.dumps(rows, indent=1) + "\n").encode())
    atomic_write(base.with_suffix(".md"), report_of(name, rows).encode())
    atomic_write(options.out / f"study-{name}-training.png", training_curves(study))
    atomic_write(options.out / f"study-{name}-entropy.png", entropy_curves(rows))
    print(report_of(name, rows))


def report_of(name: str, rows: list[dict[str, Any]]) -> str:
    """The table and the plots, in Markdown."""
    settings = rows[0]["settings"]
    about = (
        "Same tokenizer, transformer, steps and images; written by `benchmarks/study.py` on "
        f"{describe(settings['device'])} with torch {settings['made_with']['torch']}. CFG scale "
        f"{settings['cfg_scale']}, {rows[0]['images']} images. The Fréchet distance is one in the "
        "features of a classifier of the real images: not an FID."
    )
    head = "| variant | decoding | " + " | ".join(COLUMNS.values()) + " |"
    lines = [f"# Flat vocabulary, k-means and MASC on {name}", "", about, "", head]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        numbers = [f"{row[key]:.3f}" if key in row else "" for key in COLUMNS]
        lines.append(f"| {row['variant']} | {row['decoding']} | " + " | ".join(numbers) + " |")
    pictures = ("Validation", "training"), ("Entropy by position", "entropy")
    for title, plot in pictures:
        lines += ["", f"![{title}](study-{name}-{plot}.png)"]
    return "\n".join([*lines, ""])


def describe(device: str) -> str:
    """Name of the device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "a CPU"


def training_curves(study: Study) -> bytes:
    """PNG of the bits that a code costs, by epoch; vocabularies of all sizes share that measure."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name in METHODS:
        curve = read_curve(study.runs / name / "transformer", "fine_bits_per_position")
        axes.plot(*zip(*curve, strict=True), label=name, marker=".")
    axes.set(xlabel="epoch", ylabel="validation bits a code, uniform within clusters")
    axes.grid(alpha=0.3)
    axes.legend()
    return png_bytes(figure)


def entropy_curves(rows: list[dict[str, Any]]) -> bytes:
    """PNG of the teacher-forced entropy by position of each variant."""
    curves = {
        row["variant"]: np.array(row["curves"]["teacher-forced entropy"])
        for row in rows
        if row["decoding"] == "uniform"
    }
    return draw_curves("", curves)


if __name__ == "__main__":
    main()
