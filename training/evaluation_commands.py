"""Commands that measure: models by what they make, and runs against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masc_core.bundle.registry import Registry
from masc_core.settings import ModelSettings, read_settings
from training.config import load_config
from training.loop.progress import is_main_process, progress
from training.stages.evaluate import EvaluateConfig
from training.stages.evaluate import evaluate as measure_model
from training.studies.acceleration import acceleration, read_curve

console = Console(highlight=False, soft_wrap=True)


def evaluate(  # noqa: PLR0913 - options
    model: Annotated[str | None, typer.Argument(help="name of the model")] = None,
    *,
    version: Annotated[str | None, typer.Option(help="default: the active one")] = None,
    models: Annotated[Path | None, typer.Option(help="folder of the model bundles")] = None,
    images_per_class: Annotated[
        int, typer.Option(min=0, help="0 measures what needs no generated images")
    ] = 100,
    cfg_scale: Annotated[float | None, typer.Option(min=1, max=20)] = None,
    decoding: Annotated[str | None, typer.Option(help="what the model offers")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first image of each class")] = 0,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="pixels a side at which images are compared")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images generated together")] = 50,
    reference: Annotated[
        Path | None, typer.Option(help="real images, or .npz with mu and sigma of features")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="file for FID, IS, KID, precision, recall")
    ] = None,
    vgg_weights: Annotated[
        Path | None, typer.Option(help="file for precision and recall in VGG16's features")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="folder of a classifier run, for class agreement")
    ] = None,
    codes: Annotated[
        Path | None, typer.Option(help="code cache of validation images, for entropies on them")
    ] = None,
    codes_cfg_scale: Annotated[
        float, typer.Option(min=1, max=20, help="guidance of those entropies")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json, curves")] = None,
    save_images: Annotated[bool, typer.Option(help="write PNGs to out")] = False,
    save_archive: Annotated[bool, typer.Option(help="write samples.npz, as ADM has it")] = False,
    save_statistics: Annotated[bool, typer.Option(help="write the reference's statistics")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Measure a published model: fidelity, class agreement, entropy, speed."""
    given = dict(locals())
    chosen = read_settings(ModelSettings, {"models_dir": models, "default_model": model})
    name = Registry(chosen.models_dir).default(chosen.default_model)
    given |= {"models": chosen.models_dir, "name": name}
    config = load_config(EvaluateConfig, None, {k: v for k, v in given.items() if k != "model"})
    with progress("evaluate") as report:
        metrics = measure_model(config, report)
    if is_main_process():
        long = {"curves", "definitions"}
        console.print_json(json.dumps({k: v for k, v in metrics.items() if k not in long}))


def compare_runs(
    base: Annotated[Path, typer.Argument(help="folder of the baseline's run")],
    others: Annotated[list[Path], typer.Argument(help="folders of other runs")],
    *,
    metric: Annotated[str, typer.Option(help="of the validations; to be small")] = (
        "fine_bits_per_position"
    ),
    extrapolate: Annotated[
        bool, typer.Option(help="go on along the last line where the target is not reached")
    ] = False,
) -> None:
    """How much sooner runs are as good as a baseline is at its end."""
    curve = read_curve(base, metric)
    for other in others:
        found = acceleration(curve, read_curve(other, metric), extrapolate=extrapolate)
        said = "not reached" if found.saved is None else f"{found.saved:.1%} of the epochs saved"
        where = "" if found.epoch is None else f", at epoch {found.epoch:.2f}"
        note = " (extrapolated)" if found.extrapolated else ""
        console.print(f"{other}: {said}{where}{note}; {metric} {found.target:.4f} of {base}")
