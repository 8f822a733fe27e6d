"""The training half of the command line; imported only when one of its commands is called.

A stage's configuration is a TOML file, and every key of it also a flag, which wins over the file.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from masc_core.bundle.manifest import Manifest
from masc_core.errors import ConfigError
from masc_core.settings import expand_path
from masc_core.terminal import output, print_line
from training.config import ImageOptions, load_config
from training.loop.progress import is_main_process, progress
from training.stages.configs import (
    AlignConfig,
    ClassifierConfig,
    CodesConfig,
    CompareConfig,
    CompleterTrainingConfig,
    EvaluateConfig,
    EvaluateTokenizerConfig,
    ImportConfig,
    ImportPriorConfig,
    ImportTokenizerConfig,
    PriorConfig,
    PublishConfig,
    PullConfig,
    RefinerTrainingConfig,
    ShowConfig,
    TokenizerTrainingConfig,
    TransformerTrainingConfig,
)

MAX_SKIPPED = 20  # names to print
EXIF_ORIENTATION, BACKGROUND = ImageOptions.model_fields.values()

Config = TypeVar("Config", bound=BaseModel)


def stage_command(
    config_class: type[Config], *, argument: str = "", resumes: bool | Literal["always"] = True
) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Turn a function of a configuration into one whose signature Typer makes a command of.

    Parameters
    ----------
    config_class : configuration of the stage; each field becomes ``--field``, unset by default
    argument : the field that is the command's argument; by default that is the TOML file
    resumes : whether the stage goes on from where it was interrupted, where it has an ``out``, or
        ``"always"``
    """
    file = Annotated[Path | None, typer.Argument(help="TOML file of the stage")]
    annotations: dict[str, Any] = {} if argument else {"config": file}
    for name, field in config_class.model_fields.items():
        options = (
            typer.Argument(help=field.description) if name == argument else _option(name, field)
        )
        annotations[name] = Annotated[_flag_type(field), options]

    def decorate(run: Callable[[Config], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:  # noqa: ANN401 - as Typer parsed them
            path = values.pop("config", None)
            flags = {key: _parse(config_class.model_fields[key], v) for key, v in values.items()}
            config = load_config(config_class, path, flags)
            try:
                run(config)
            except KeyboardInterrupt as interrupt:
                has_out = getattr(config, "out", None) is not None
                goes_on = resumes == "always" or (resumes and has_out)
                way_on = "goes on from here" if goes_on else "starts again"
                typer.echo(f"masc: interrupted; the same command {way_on}", err=True)
                raise typer.Exit(130) from interrupt

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
        command.__doc__ = run.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = annotations
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Any:  # noqa: ANN401 - Typer's own type
    text = field.description or ""
    if not field.is_required() and field.default not in (None, ()):
        default = f"default: {_show(field.default)}"
        text = f"{text} ({default})" if text else default
    flag = name.replace("_", "-")
    if field.annotation is bool:
        return typer.Option(f"--{flag}/--no-{flag}", help=text, show_default=False)
    return typer.Option(f"--{flag}", help=text, show_default=False)


def _flag_type(field: FieldInfo) -> Any:  # noqa: ANN401 - a type
    annotation = field.annotation
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if annotation in {int, float, bool, Path}:
        return annotation | None
    return str | None


def _parse(field: FieldInfo, value: Any) -> Any:  # noqa: ANN401 - as Typer parsed it
    if isinstance(value, str) and typing.get_origin(field.annotation) is tuple:
        return [part.strip() for part in value.split(",")]
    return value


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _argument(text: str) -> Any:  # noqa: ANN401 - Typer's
    """A path that no configuration checks."""
    return typer.Argument(parser=expand_path, help=text)


def _group() -> None:
    """Keep a group of one command a group; `masc` has its help."""


tokenizer = typer.Typer(no_args_is_help=True)
codes = typer.Typer(no_args_is_help=True, callback=_group)
prior = typer.Typer(no_args_is_help=True)
transformer = typer.Typer(no_args_is_help=True)
refiner = typer.Typer(no_args_is_help=True, callback=_group)
completer = typer.Typer(no_args_is_help=True, callback=_group)
classifier = typer.Typer(no_args_is_help=True, callback=_group)


@tokenizer.command("train")
@stage_command(TokenizerTrainingConfig)
def tokenizer_train(config: TokenizerTrainingConfig) -> None:
    """Train the VQ tokenizer on images."""
    from training.stages.tokenizer import train_tokenizer

    with progress("tokenizer") as report:
        metrics = train_tokenizer(config, report)
    _say(
        f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.3f}, "
        f"{metrics['codebook_usage']:.1%} of the codes in use",
        config.out,
    )


@tokenizer.command("reconstruct")
def tokenizer_reconstruct(
    run: Annotated[Path, _argument("folder of a tokenizer run, or of a bundle with its encoder")],
    images: Annotated[Path, _argument("class folders, tar shards or parquet files")],
    out: Annotated[
        Path,
        typer.Option(
            parser=expand_path, metavar="PATH", help="sheet of originals above reconstructions"
        ),
    ] = Path("reconstructions.png"),
    image_size: Annotated[int, typer.Option(min=8)] = 64,
    count: Annotated[int, typer.Option(min=1, help="images, spread over the folder")] = 32,
    *,
    exif_orientation: Annotated[bool, _option("exif_orientation", EXIF_ORIENTATION)] = True,
    background: Annotated[str, _option("background", BACKGROUND)] = BACKGROUND.default,
) -> None:
    """Encode and decode images, and show both."""
    from masc_core.io.files import atomic_path, writing
    from training.data.codebook_source import TrainedTokenizer
    from training.data.images import open_images
    from training.metrics.reconstruction import reconstruction_sheet

    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise ConfigError(f"out: {out} is no place for a .png file")
    model = TrainedTokenizer.open(run, with_encoder=True).model
    model.config.grid_size(image_size)
    options = {"exif_orientation": exif_orientation, "background": background}
    folder = open_images(images, load_config(ImageOptions, None, options))
    pixels = folder.read(image_size, folder.spread(count)).pixels
    with writing(out), atomic_path(out) as temporary:
        reconstruction_sheet(model, pixels, count).save(temporary)
    _say(f"{len(pixels)} images", out)


@tokenizer.command("evaluate")
@stage_command(EvaluateTokenizerConfig, argument="tokenizer", resumes=False)
def tokenizer_evaluate(config: EvaluateTokenizerConfig) -> None:
    """Measure what a tokenizer keeps of images: PSNR, rFID, class agreement."""
    from training.stages.evaluate_tokenizer import evaluate_tokenizer

    with progress("evaluate") as report:
        metrics = evaluate_tokenizer(config, report)
    _print_json({k: v for k, v in metrics.items() if k != "definitions"})


@tokenizer.command("import")
@stage_command(ImportTokenizerConfig, argument="source", resumes=False)
def tokenizer_import(config: ImportTokenizerConfig) -> None:
    """Take in a tokenizer of LlamaGen or GigaTok, to extract codes and build priors with."""
    from training.stages.import_weights import import_tokenizer

    with progress("import") as report:
        metrics = import_tokenizer(config, report)
    measured = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
    _say(measured or "not measured, for want of --val-data", config.out)


@codes.command("extract")
@stage_command(CodesConfig)
def codes_extract(config: CodesConfig) -> None:
    """Turn images into codes."""
    from training.data.code_cache import INDEX
    from training.stages.codes import extract_codes

    with progress("codes") as report:
        index = extract_codes(config, report)
    _say(f"{index.num_images} images, {len(index.skipped)} skipped", config.out)
    for name in index.skipped[:MAX_SKIPPED]:
        _print(f"skipped: {name}")
    if len(index.skipped) > MAX_SKIPPED:
        _print(f"... all of them are listed in {config.out / INDEX}")


@prior.command("build")
@stage_command(PriorConfig, resumes=False)
def prior_build(config: PriorConfig) -> None:
    """Build the tree over a codebook and cut it."""
    from training.stages.prior import build_prior

    with progress("prior") as report:
        built = build_prior(config, report)
    _say(
        f"{built.num_codes} codes in {built.num_clusters} clusters, the largest of "
        f"{built.sizes.max()}",
        config.out,
    )


@prior.command("import")
@stage_command(ImportPriorConfig, argument="source", resumes=False)
def prior_import(config: ImportPriorConfig) -> None:
    """Take in IAR's clusters, from its mapping."""
    from training.stages.prior import import_prior

    taken = import_prior(config)
    _say(f"{taken.num_codes} codes in {taken.num_clusters} clusters", config.out)


@prior.command("compare")
@stage_command(CompareConfig, resumes=False)
def prior_compare(config: CompareConfig) -> None:
    """Measure priors against each other on images."""
    from training.studies.compare import compare_priors

    with progress("compare") as report:
        comparison = compare_priors(config, report)
    _say(
        f"{len(comparison.priors)} priors measured, {len(comparison.impossible)} not possible",
        config.out,
    )


@prior.command("show")
@stage_command(ShowConfig, resumes=False)
def prior_show(config: ShowConfig) -> None:
    """Draw the top of the tree, the cluster sizes and the codebook atlas."""
    from training.studies.show import show_prior

    with progress("prior") as report:
        shown = show_prior(config, report)
    _say(f"{shown.num_codes} codes in {shown.num_clusters} clusters", shown.pages[0])


@transformer.command("train")
@stage_command(TransformerTrainingConfig)
def transformer_train(config: TransformerTrainingConfig) -> None:
    """Train the transformer on clusters, or on codes with a loss of their clusters."""
    from training.stages.transformer import train_transformer

    with progress("transformer") as report:
        metrics = train_transformer(config, report)
    _say(
        f"{metrics['bits_per_position']:.3f} bits a position on validation images, "
        f"{metrics['unigram_bits']:.3f} without context",
        config.out,
    )


@transformer.command("align")
@stage_command(AlignConfig)
def transformer_align(config: AlignConfig) -> None:
    """Fine-tune a transformer to need no guidance: one row an image instead of two."""
    from training.stages.align import align_transformer

    with progress("align") as report:
        metrics = align_transformer(config, report)
    _say(
        f"{metrics['alignment_accuracy']:.1%} of the validation images likelier under their own "
        "class than before, beside another",
        config.out,
    )


@transformer.command("acceleration")
def transformer_acceleration(
    base: Annotated[Path, _argument("folder of the baseline's run")],
    others: Annotated[list[Path], _argument("folders of other runs")],
    *,
    metric: Annotated[str, typer.Option(help="of the validations; lower is better")] = (
        "fine_bits_per_position"
    ),
    extrapolate: Annotated[
        bool, typer.Option(help="go on along the last line where the target is not reached")
    ] = False,
) -> None:
    """How much sooner runs are as good as a baseline is at its end."""
    from training.studies.acceleration import acceleration, read_curve

    curve = read_curve(base, metric)
    for other in others:
        found = acceleration(curve, read_curve(other, metric), extrapolate=extrapolate)
        said = "not reached" if found.saved is None else f"{found.saved:.1%} of the epochs saved"
        where = "" if found.epoch is None else f", at epoch {found.epoch:.2f}"
        note = " (extrapolated)" if found.extrapolated else ""
        _print(f"{other}: {said}{where}{note}; {metric} {found.target:.4f} of {base}")


@refiner.command("train")
@stage_command(RefinerTrainingConfig)
def refiner_train(config: RefinerTrainingConfig) -> None:
    """Train the refiner on a transformer's states."""
    from training.stages.refiner import train_refiner

    with progress("refiner") as report:
        metrics = train_refiner(config, report)
    _say_bits(metrics, config.out)


@completer.command("train")
@stage_command(CompleterTrainingConfig)
def completer_train(config: CompleterTrainingConfig) -> None:
    """Train the completer on clusters of true codes."""
    from training.stages.completer import train_completer

    with progress("completer") as report:
        metrics = train_completer(config, report)
    _say_bits(metrics, config.out)


@classifier.command("train")
@stage_command(ClassifierConfig)
def classifier_train(config: ClassifierConfig) -> None:
    """Train a classifier of the real images."""
    from training.stages.classifier import train_classifier

    with progress("classifier") as report:
        metrics = train_classifier(config, report)
    _say(f"{metrics['accuracy']:.1%} of the validation images right", config.out)


@stage_command(EvaluateConfig, argument="model")
def evaluate_command(config: EvaluateConfig) -> None:
    """Measure a published model: fidelity, class agreement, entropy, speed."""
    from training.stages.evaluate import evaluate

    with progress("evaluate") as report:
        metrics = evaluate(config, report)
    long = {"curves", "definitions"}
    _print_json({k: v for k, v in metrics.items() if k not in long})


@stage_command(PublishConfig, resumes=False)
def publish_command(config: PublishConfig) -> None:
    """Measure a trained model and publish it as a version."""
    from training.stages.publish import publish

    with progress("publish") as report:
        manifest = publish(config, report)
    _say_version(config.models, manifest)
    _print_json(manifest.metrics)


@stage_command(ImportConfig, resumes=False)
def import_command(config: ImportConfig) -> None:
    """Take in a checkpoint of LlamaGen, IAR or GigaTok as a version."""
    from training.stages.import_weights import import_model

    with progress("import") as report:
        manifest = import_model(config, report)
    _say_version(config.models, manifest)


@stage_command(PullConfig, argument="weights", resumes="always")
def pull_command(config: PullConfig) -> None:
    """Fetch released weights by name, and take them in as a version."""
    from training.stages.pull import pull

    with progress("pull") as report:
        pulled = pull(config, report)
    if isinstance(pulled, Path):
        _say(config.weights, pulled)
    else:
        _say_version(config.models, pulled)


def _say_version(models: str | Path | None, manifest: Manifest) -> None:
    from masc_core.settings import models_dir
    from object_storage.registry import open_registry

    registry = open_registry(models_dir(models))
    megabytes = registry.num_bytes(manifest) / 1e6
    location = registry.location(manifest.name, manifest.version)
    _say(f"{manifest.name} {manifest.version}, {megabytes:.1f} MB", location)


def _say_bits(metrics: dict[str, Any], out: Path) -> None:
    _say(
        f"{metrics['in_cluster_bits']:.3f} bits a code within its cluster on validation images; "
        f"by frequency {metrics['frequency_bits']:.3f}, uniformly {metrics['uniform_bits']:.3f}",
        out,
    )


def _say(result: str, where: str | Path) -> None:
    _print(f"{result}: {where}")


def _print(text: str) -> None:
    print_line(text, quiet=not is_main_process())


def _print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    output(quiet=not is_main_process()).print_json(json.dumps(value))
