"""The training half of the command line; imported only when one of its commands is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from masc_core.bundle import load_bundle
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ConfigError
from masc_core.registry import Registry
from masc_core.settings import ModelSettings, models_dir, read_settings
from masc_core.weights import load_tokenizer
from training.classifier import ClassifierConfig, load_classifier, train_classifier
from training.codes import CodesConfig, extract_codes
from training.commands import stage_command
from training.compare import compare_priors
from training.compare_inputs import CompareConfig
from training.evaluation import class_agreement, seconds_per_image
from training.images import ImageFolder
from training.prior import PriorConfig, build_prior
from training.progress import progress
from training.publish import PublishConfig, publish
from training.reconstruction import reconstruction_sheet
from training.show import show_prior
from training.show_inputs import ShowConfig
from training.tokenizer import TokenizerConfig, train_tokenizer
from training.transformer import TransformerConfig, train_transformer

console = Console(highlight=False, soft_wrap=True)


def _train_tokenizer(config: TokenizerConfig) -> None:
    with progress("tokenizer") as report:
        metrics = train_tokenizer(config, report)
    _say(
        f"PSNR {metrics['psnr']:.2f} dB, {metrics['codebook_usage']:.1%} of the codes in use",
        config.out,
    )


def _extract_codes(config: CodesConfig) -> None:
    with progress("codes") as report:
        index = extract_codes(config, report)
    _say(f"{sum(index.shards)} images, {len(index.skipped)} skipped", config.out)


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


def _train_classifier(config: ClassifierConfig) -> None:
    with progress("classifier") as report:
        metrics = train_classifier(config, report)
    _say(f"{metrics['accuracy']:.1%} of the validation images right", config.out)


def _publish(config: PublishConfig) -> None:
    with progress("publish") as report:
        manifest = publish(config, report)
    folder = models_dir(config.models) / manifest.name / manifest.version
    megabytes = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    _say(f"{manifest.name} {manifest.version}, {megabytes:.1f} MB", folder)
    console.print_json(json.dumps(manifest.metrics))


tokenizer = typer.Typer(no_args_is_help=True)
tokenizer.command("train")(
    stage_command(TokenizerConfig, _train_tokenizer, "Train the VQ tokenizer on images.")
)


@tokenizer.command("reconstruct")
def reconstruct(
    run: Annotated[Path, typer.Argument(help="folder of a tokenizer run")],
    images: Annotated[Path, typer.Argument(help="folder-per-class images")],
    out: Annotated[Path, typer.Option(help="sheet of originals above reconstructions")] = Path(
        "reconstructions.png"
    ),
    image_size: Annotated[int, typer.Option(min=8)] = 64,
    count: Annotated[int, typer.Option(min=1, help="images, spread over the folder")] = 32,
) -> None:
    """Encode and decode images, and show both."""
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise ConfigError(f"out: {out} is no place for a .png file")
    model = load_tokenizer(run / "tokenizer.safetensors")
    model.config.grid_size(image_size)
    folder = ImageFolder.scan(images)
    pixels = folder.read(image_size, folder.spread(count)).pixels
    reconstruction_sheet(model, pixels, count).save(out)
    _say(f"{len(pixels)} images", out)


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


def evaluate(
    model: Annotated[str | None, typer.Argument(help="name of the model")] = None,
    version: Annotated[str | None, typer.Option(help="default: the active one")] = None,
    models: Annotated[Path | None, typer.Option(help="folder of the model bundles")] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="folder of a classifier run, for class agreement")
    ] = None,
    images_per_class: Annotated[int, typer.Option(min=1)] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Measure a published model: speed, entropy, class agreement."""
    chosen = read_settings(ModelSettings, {"models_dir": models, "default_model": model})
    registry, on = Registry(chosen.models_dir), resolve_device(device)
    name = registry.default(chosen.default_model)
    bundle = load_bundle(registry.path(name, version), on, choose_dtype("auto", on))
    figures: dict[str, Any] = {"model": name, "version": bundle.manifest.version}
    figures |= seconds_per_image(bundle)
    if classifier is not None:
        judge = load_classifier(classifier, bundle.manifest.class_names).to(bundle.device)
        with progress("evaluate") as report:
            figures |= class_agreement(bundle, judge, images_per_class, report=report)
    console.print_json(json.dumps(figures))


def _say(result: str, where: Path) -> None:
    console.print(f"{result}: {where}")
