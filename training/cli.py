"""The training half of the command line; imported only when one of its commands is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masc_core.bundle.manifest import TOKENIZER_FILE, Manifest
from masc_core.errors import ConfigError
from masc_core.models.weights import load_tokenizer
from masc_core.settings import models_dir
from training.commands import stage_command
from training.config import load_config
from training.data.code_cache import INDEX
from training.data.images import open_images
from training.evaluation_commands import compare_runs, evaluate
from training.loop.progress import is_main_process, progress
from training.metrics.reconstruction import reconstruction_sheet
from training.stages.classifier import ClassifierConfig, train_classifier
from training.stages.codes import CodesConfig, extract_codes
from training.stages.import_model import ImportConfig, import_model
from training.stages.import_tokenizer import ImportTokenizerConfig, import_tokenizer
from training.stages.prior import PriorConfig, build_prior
from training.stages.publish import PublishConfig, publish
from training.stages.refiner import RefinerTraining, train_refiner
from training.stages.tokenizer import TokenizerConfig, train_tokenizer
from training.stages.transformer import TransformerConfig, train_transformer
from training.studies.compare import compare_priors
from training.studies.compare_inputs import CompareConfig
from training.studies.show import show_prior
from training.studies.show_inputs import ShowConfig

MOST_SKIPPED = 20  # names to print

console = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def _train_tokenizer(config: TokenizerConfig) -> None:
    with progress("tokenizer") as report:
        metrics = train_tokenizer(config, report)
    _say(
        f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.3f}, "
        f"{metrics['codebook_usage']:.1%} of the codes in use",
        config.out,
    )


def _extract_codes(config: CodesConfig) -> None:
    with progress("codes") as report:
        index = extract_codes(config, report)
    _say(f"{index.num_images} images, {len(index.skipped)} skipped", config.out)
    for name in index.skipped[:MOST_SKIPPED]:
        console.print(f"skipped: {name}")
    if len(index.skipped) > MOST_SKIPPED:
        console.print(f"... all of them are listed in {config.out / INDEX}")


def _build_prior(config: PriorConfig) -> None:
    with progress("prior") as report:
        prior = build_prior(config, report)
    _say(
        f"{prior.num_codes} codes in {prior.num_clusters} clusters, the largest of "
        f"{prior.sizes.max()}",
        config.out,
    )


def _compare_priors(config: CompareConfig) -> None:
    with progress("compare") as report:
        comparison = compare_priors(config, report)
    _say(
        f"{len(comparison.priors)} priors measured, {len(comparison.impossible)} not possible",
        config.out,
    )


def _show_prior(config: ShowConfig) -> None:
    with progress("prior") as report:
        shown = show_prior(config, report)
    _say(f"{shown.num_codes} codes in {shown.num_clusters} clusters", shown.pages[0])


def _train_transformer(config: TransformerConfig) -> None:
    with progress("transformer") as report:
        metrics = train_transformer(config, report)
    _say(
        f"{metrics['bits_per_position']:.3f} bits a position on validation images, "
        f"{metrics['unigram_bits']:.3f} without context",
        config.out,
    )


def _train_refiner(config: RefinerTraining) -> None:
    with progress("refiner") as report:
        metrics = train_refiner(config, report)
    _say(
        f"{metrics['in_cluster_bits']:.3f} bits a code within its cluster on validation images; "
        f"by frequency {metrics['frequency_bits']:.3f}, uniformly {metrics['uniform_bits']:.3f}",
        config.out,
    )


def _train_classifier(config: ClassifierConfig) -> None:
    with progress("classifier") as report:
        metrics = train_classifier(config, report)
    _say(f"{metrics['accuracy']:.1%} of the validation images right", config.out)


def _publish(config: PublishConfig) -> None:
    with progress("publish") as report:
        manifest = publish(config, report)
    _say_version(models_dir(config.models), manifest)
    console.print_json(json.dumps(manifest.metrics))


def _import_model(config: ImportConfig) -> None:
    with progress("import") as report:
        manifest = import_model(config, report)
    _say_version(models_dir(config.models), manifest)


def _say_version(models: Path, manifest: Manifest) -> None:
    folder = models / manifest.name / manifest.version
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    _say(f"{manifest.name} {manifest.version}, {megabytes:.1f} MB", folder)


tokenizer = typer.Typer(no_args_is_help=True)
tokenizer.command("train")(
    stage_command(TokenizerConfig, _train_tokenizer, "Train the VQ tokenizer on images.")
)


@tokenizer.command("reconstruct")
def reconstruct(
    run: Annotated[Path, typer.Argument(help="folder of a tokenizer run")],
    images: Annotated[Path, typer.Argument(help="class folders, tar shards or parquet files")],
    out: Annotated[Path, typer.Option(help="sheet of originals above reconstructions")] = Path(
        "reconstructions.png"
    ),
    image_size: Annotated[int, typer.Option(min=8)] = 64,
    count: Annotated[int, typer.Option(min=1, help="images, spread over the folder")] = 32,
) -> None:
    """Encode and decode images, and show both."""
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise ConfigError(f"out: {out} is no place for a .png file")
    model = load_tokenizer(run / TOKENIZER_FILE)
    model.config.grid_size(image_size)
    folder = open_images(images)
    pixels = folder.read(image_size, folder.spread(count)).pixels
    reconstruction_sheet(model, pixels, count).save(out)
    _say(f"{len(pixels)} images", out)


@tokenizer.command("import")
def tokenizer_import(
    source: Annotated[Path, typer.Argument(help="tokenizer of LlamaGen, .pt or .safetensors")],
    out: Annotated[Path, typer.Option(help="folder of the tokenizer run that this becomes")],
    weights: Annotated[str, typer.Option(help="model, or ema, their moving average")] = "model",
    val_data: Annotated[
        Path | None, typer.Option(help="folder-per-class images to measure it on")
    ] = None,
    val_images: Annotated[int, typer.Option(min=1, help="images, spread over the folder")] = 2000,
    image_size: Annotated[int, typer.Option(min=8, help="of the images")] = 256,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice")] = 0,
) -> None:
    """Take in a tokenizer of LlamaGen, to extract codes and build priors with."""
    options = {"source": source, "out": out, "weights": weights, "val_data": val_data}
    options |= {"val_images": val_images, "image_size": image_size, "threads": threads}
    metrics = import_tokenizer(load_config(ImportTokenizerConfig, None, options))
    measured = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
    _say(measured or "not measured, for want of --val-data", out)


codes = typer.Typer(no_args_is_help=True)


@codes.callback()
def _codes() -> None:
    """Images to codes."""


codes.command("extract")(stage_command(CodesConfig, _extract_codes, "Turn images into codes."))

prior = typer.Typer(no_args_is_help=True)


@prior.callback()
def _prior() -> None:
    """Codes to clusters."""


prior.command("build")(
    stage_command(
        PriorConfig, _build_prior, "Build the tree over a codebook and cut it.", resumes=False
    )
)

prior.command("compare")(
    stage_command(
        CompareConfig,
        _compare_priors,
        "Measure priors against each other on images.",
        resumes=False,
    )
)
prior.command("show")(
    stage_command(
        ShowConfig,
        _show_prior,
        "Draw the top of the tree, the cluster sizes and the codebook atlas.",
        resumes=False,
    )
)


transformer = typer.Typer(no_args_is_help=True)


@transformer.callback()
def _transformer() -> None:
    """The autoregressive model."""


transformer.command("train")(
    stage_command(TransformerConfig, _train_transformer, "Train the transformer on clusters.")
)
transformer.command("acceleration")(compare_runs)

refiner = typer.Typer(no_args_is_help=True)


@refiner.callback()
def _refiner() -> None:
    """From clusters to codes."""


refiner.command("train")(
    stage_command(RefinerTraining, _train_refiner, "Train the refiner on a transformer's states.")
)

classifier = typer.Typer(no_args_is_help=True)


@classifier.callback()
def _classifier() -> None:
    """The judge of class agreement."""


classifier.command("train")(
    stage_command(ClassifierConfig, _train_classifier, "Train a classifier of the real images.")
)

publish_command = stage_command(
    PublishConfig,
    _publish,
    "Measure a trained model and publish it as a version.",
    resumes=False,
)


import_command = stage_command(
    ImportConfig,
    _import_model,
    "Take in a checkpoint of LlamaGen as a version.",
    resumes=False,
)


evaluate_command = evaluate


def _say(result: str, where: Path) -> None:
    console.print(f"{result}: {where}")
