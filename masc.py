"""The command line: it composes server, worker and training.

Errors that a user can cause are one line on standard error and exit status 2. A command imports
what it needs when it runs, so that all of them show their help at once. Those of training are in
`training.cli`: each runs a file of `training.stages`, and a step is `training_step` in
`training.loop.trainer`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masc_core.errors import ArtifactError, ConfigError, MascError, RequestError
from masc_core.sampling.params import MAX_CFG_SCALE
from masc_core.settings import expand_path
from masc_core.terminal import (
    Json,
    escape_what_cannot_be_encoded,
    output,
    print_error,
    print_line,
    print_table,
    replace_closed_streams,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

    from masc_core.bundle.manifest import Manifest
    from masc_core.bundle.registry import Registry
    from server.settings import ServerSettings
    from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

# Groups of `training.cli`, and what the overview says of them.
TRAINING_GROUPS = {
    "tokenizer": "VQ tokenizer: images to codes and back.",
    "codes": "Images to codes, packed for training.",
    "prior": "Codes to clusters: build the tree, cut it, judge the cut.",
    "transformer": "The autoregressive model over clusters.",
    "refiner": "From predicted clusters to codes: hierarchical decoding.",
    "completer": "From all clusters of an image to all of its codes in one pass.",
    "classifier": "The judge of class agreement.",
}
# Commands of the group ``models`` that `training.cli` has: help text, name there.
TRAINING_MODELS_COMMANDS = {
    "publish": ("Measure a trained model and publish it as a version.", "publish_command"),
    "import": ("Take in a checkpoint of LlamaGen, IAR or GigaTok as a version.", "import_command"),
    "pull": ("Fetch released weights by name, and take them in as a version.", "pull_command"),
}
# Modules that the extras bring, which not every installation has.
OPTIONAL = {
    "aiohttp", "fastcluster", "httpx2", "huggingface_hub", "matplotlib", "numba", "safetensors",
    "scipy", "sklearn", "tensorboard", "torch", "tqdm",
}  # fmt: skip
# People choose between versions by these: key in the manifest, name, format.
METRICS = (
    ("bits_per_position", "bits", ".3f"),
    ("psnr", "PSNR", ".2f"),
    ("frechet_inception_distance", "FID", ".2f"),
    ("class_agreement", "agreement", ".1%"),
    ("seconds_per_image", "s/image", ".3g"),
)
END_SECONDS = 3.0  # for the worker's thread, when there is nothing left for it to do

Models = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Folder of the model bundles, or s3://, gs:// or az:// address [env MASC_MODELS_DIR].",
    ),
]
ServedModels = Annotated[
    list[str] | None,
    typer.Option(
        help="Model to serve; several times for several, or all [env MASC_SERVED_MODELS]."
    ),
]
Queue = Annotated[str | None, typer.Option(help="Queue [env MASC_QUEUE_URL].")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [env MASC_DEVICE].")]


def main() -> None:
    """Entry point of ``masc`` and ``python -m masc``."""
    from worker.jobs.log import configure_logging

    replace_closed_streams()
    escape_what_cannot_be_encoded()
    configure_logging("text", logging.WARNING, "%(message)s")  # `serve` and `worker` set their own
    # Pillow warns of images that it can read; those that it cannot are skipped and named.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # Plots go to files; the back-end that a notebook sets may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    try:
        build_app(_arguments())(prog_name="masc")
    except MascError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, ConfigError | ArtifactError | RequestError) else 1)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        extra = "bench" if _asked(_arguments())[:1] == ["bench"] else "training"
        print_error(f"this command needs {error.name}: pip install 'masc[{extra}]'")
        sys.exit(2)
    except OSError as error:
        print_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        print_error("interrupted")
        sys.exit(130)


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The commands; of the training half only what ``arguments`` ask for is imported."""
    asked = _asked(arguments)
    app = typer.Typer(
        help="Train and serve autoregressive image generation over clusters of codes.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("serve")(serve)
    app.command("worker")(worker)
    app.command("generate")(generate)
    for name, text in TRAINING_GROUPS.items():
        group = _training(name) if asked[:1] == [name] else typer.Typer()
        app.add_typer(group, name=name, help=text)
    evaluate = _training("evaluate_command") if asked[:1] == ["evaluate"] else _placeholder
    app.command("evaluate", help="Measure a published model: fidelity, agreement, entropy, speed.")(
        evaluate
    )
    app.command("bench")(bench)
    app.add_typer(_models_app(asked), name="models", help="The registry of model versions.")
    keys = _keys() if asked[:1] == ["keys"] else typer.Typer()
    app.add_typer(keys, name="keys", help="API keys of the service.")
    return app


def _arguments() -> Sequence[str]:
    """What was typed: so far, where a shell asks how it could go on."""
    words = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return words.split()[1:] if "_MASC_COMPLETE" in os.environ else sys.argv[1:]


def _asked(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if argument != "--"]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env MASC_HOST].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one [env MASC_PORT].")
    ] = None,
    models: Models = None,
    model: ServedModels = None,
    queue: Queue = None,
    device: Device = None,
) -> None:
    """Run the whole service: front end, in-process queue and one worker for all models.

    With a queue outside the process it is the front end alone, and `masc worker` makes the images.
    Requests that name no model get the first of those that are given with `--model`.
    """
    from server.settings import load_settings as load_server_settings
    from worker.jobs.log import configure_logging

    first = (_listed(model) or "").partition(",")[0].strip()
    settings = load_server_settings(
        host=host,
        port=port,
        models_dir=models,
        queue_url=queue,
        default_model=None if first in {"", "all"} else first,
    )
    configure_logging(settings.log_format)
    if not settings.queue_url.startswith("memory:"):
        _serve(settings, None)
        return
    from worker.settings import ALL
    from worker.settings import load_settings as load_worker_settings

    worker_settings = load_worker_settings(
        models_dir=models, queue_url=queue, device=device, served_models=_listed(model)
    )
    if not worker_settings.served_models:
        worker_settings = worker_settings.model_copy(update={"served_models": ALL})
    _serve(_with_default(settings, worker_settings), worker_settings)


def worker(
    queue: Queue = None,
    models: Models = None,
    model: ServedModels = None,
    device: Device = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics; 0 takes one [env MASC_METRICS_PORT].")
    ] = None,
) -> None:
    """Run one worker for the front ends of a queue; start as many as you like."""
    from prometheus_client import CollectorRegistry

    from worker.jobs.connect import connect
    from worker.jobs.log import configure_logging
    from worker.main import build_worker, run_until_signal, serve_metrics
    from worker.settings import load_settings

    settings = load_settings(
        models_dir=models,
        queue_url=queue,
        device=device,
        served_models=_listed(model),
        metrics_port=metrics_port,
    )
    configure_logging(settings.log_format)
    if settings.queue_url.startswith("memory:"):
        raise ConfigError("MASC_QUEUE_URL: a worker by itself needs a queue outside the process")
    registry = CollectorRegistry()
    with closing(connect(settings.queue_url, settings.limits, settings.queue_prefix)) as jobs:
        loop = build_worker(settings, jobs, registry)
        with serve_metrics(loop, registry, settings.metrics_host, settings.metrics_port):
            run_until_signal(loop)


def generate(  # noqa: PLR0913 - options
    classes: Annotated[
        list[str] | None, typer.Argument(help="Class names or ids; every class by default.")
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            parser=expand_path,
            metavar="PATH",
            help="An image file (a sheet, if there are several) or a folder.",
        ),
    ] = Path("generated.png"),
    num_images: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Image i of a class uses seed + i.")] = 0,
    cfg_scale: Annotated[float | None, typer.Option(min=1.0, max=MAX_CFG_SCALE)] = None,
    cfg_schedule: Annotated[
        str | None, typer.Option(help="constant, step, linear, linear_re or triangular")
    ] = None,
    cfg_start: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of positions before a step.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    top_p: Annotated[float | None, typer.Option(max=1.0)] = None,
    cluster_top_k: Annotated[
        int | None, typer.Option(min=0, help="As top-k, of the clusters of the model's partition.")
    ] = None,
    cluster_top_p: Annotated[float | None, typer.Option(max=1.0, help="Likewise.")] = None,
    decoding: Annotated[
        str | None, typer.Option(help="uniform, frequency, refine or complete")
    ] = None,
    code_temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of the decoding complete, as the next two.")
    ] = None,
    code_top_k: Annotated[int | None, typer.Option(min=0)] = None,
    code_cfg_scale: Annotated[float | None, typer.Option(min=1.0, max=MAX_CFG_SCALE)] = None,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge the images this many times.")] = 1,
    columns: Annotated[int, typer.Option(min=1, help="Images a row of a sheet.")] = 10,
    models: Models = None,
    model: Annotated[str | None, typer.Option(help="Model, where there are several.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
) -> None:
    """Generate images to files or a contact sheet, without a server."""
    options = dict(locals())  # by their names
    from worker.offline import generate_files
    from worker.settings import load_settings

    settings = load_settings(
        models_dir=options.pop("models"),
        device=options.pop("device"),
        default_model=options.pop("model"),
    )
    written = generate_files(settings, **options | {"classes": tuple(classes or ())})
    print_line(f"{len(written)} file(s): {written[0]}" + (" ..." if written[1:] else ""))


def bench(  # noqa: PLR0913 - options
    url: Annotated[str, typer.Argument(help="Address of the service.")] = "http://127.0.0.1:8000",
    *,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: Poisson arrivals, so many a second.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Closed loop: so many clients, each asks when answered.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds; 10 if --requests is not given either.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many requests.")] = None,
    warm_up: Annotated[
        float, typer.Option(help="Seconds of the same load that are not measured.")
    ] = 0.0,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Name or id; each is drawn if not given.")
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="1 to 20; the model's default.")] = None,
    cfg_schedule: Annotated[
        str | None, typer.Option(help="constant, step, linear, linear_re or triangular; likewise.")
    ] = None,
    cfg_start: Annotated[
        float | None, typer.Option(help="Share of positions before a step, 0 to 1; likewise.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0 to 10; likewise.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off; likewise.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off; likewise.")] = None,
    cluster_top_k: Annotated[
        int | None, typer.Option(help="Of the clusters of the model's partition; likewise.")
    ] = None,
    cluster_top_p: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    decoding: Annotated[
        str | None, typer.Option(help="uniform, frequency, refine or complete; likewise.")
    ] = None,
    code_temperature: Annotated[
        float | None, typer.Option(help="Of the decoding complete, as the next two; likewise.")
    ] = None,
    code_top_k: Annotated[int | None, typer.Option()] = None,
    code_cfg_scale: Annotated[float | None, typer.Option()] = None,
    num_images: Annotated[int, typer.Option(help="Images a request, 1 to 16.")] = 1,
    file_format: Annotated[
        str, typer.Option("--format", help="Of the images: png, jpeg or webp.")
    ] = "png",
    model: Annotated[str | None, typer.Option(help="Model; the service's default.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="interactive or batch; by default what the key may ask for.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of arrivals, classes and images; the same, the same requests.")
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 60.0,
    api_key: Annotated[
        str | None, typer.Option(help="Sent as bearer token; better in MASC_API_KEY.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=expand_path, metavar="PATH", help="Folder for bench.json and bench.png."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load a running service, and measure what it answers and how fast."""
    options = dict(locals())  # by their names
    from server.bench.cli import run_and_print

    run_and_print(format=options.pop("file_format"), **options)


def _models_app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(no_args_is_help=True)
    app.command("list")(list_models)
    for name, (text, attribute) in TRAINING_MODELS_COMMANDS.items():
        wanted = list(arguments[:2]) == ["models", name]
        app.command(name, help=text)(_training(attribute) if wanted else _placeholder)
    app.command("activate")(activate)
    app.command("rollback")(rollback)
    app.command("verify")(verify)
    return app


def list_models(models: Models = None, *, as_json: Json = False) -> None:
    """List models and versions; ``*`` is served, ``previous`` is what a rollback leads to."""
    rows = version_rows(_registry(models))
    if as_json:
        output().print_json(json.dumps([asdict(row) for row in rows]))
        return
    heads = ("model", "version", "active", "created", "MB", "grid, clusters/codes", "figures")
    print_table(heads, map(astuple, rows))


def _registry(models: str | None) -> Registry:
    from masc_core.settings import models_dir
    from object_storage.registry import open_registry

    return open_registry(models_dir(models))


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in words."""

    name: str
    version: str
    state: str  # ``*`` for the active version, ``previous`` for the one that a rollback leads to
    created: str = ""  # day, UTC
    megabytes: str = ""  # of all its files
    sizes: str = ""  # positions, clusters / codes
    metrics: str = ""  # the metrics that matter; what is wrong, where the version is damaged


def version_rows(registry: Registry) -> list[VersionRow]:
    """Every version of every model; one that is damaged does not hide the others."""
    rows = []
    for name in registry.names():
        states = _version_states(registry, name)
        rows += [
            _version_row(registry, name, version, states.get(version, ""))
            for version in _versions(registry, name)
        ]
    return rows


def _versions(registry: Registry, name: str) -> tuple[str, ...]:
    """Versions of a model; one without a name, of which an error says why, if nobody can look."""
    try:
        return registry.versions(name)
    except ArtifactError:
        return ("",)


def _version_states(registry: Registry, name: str) -> dict[str, str]:
    try:
        return {str(registry.previous(name)): "previous", registry.current(name): "*"}
    except ArtifactError:
        return {}


def _version_row(registry: Registry, name: str, version: str, state: str) -> VersionRow:
    try:
        manifest = registry.manifest(name, version)
        size = registry.num_bytes(manifest)
    except ArtifactError as error:
        return VersionRow(name, version, state, metrics=f"damaged: {error.reason}")
    except OSError as error:
        return VersionRow(name, version, state, metrics=f"damaged: {error.strerror}")
    rows, columns = manifest.latent_shape
    return VersionRow(
        name,
        version,
        state,
        created=f"{manifest.created.astimezone(UTC):%Y-%m-%d}",
        megabytes=f"{size / 1e6:.1f}",
        sizes=f"{rows}x{columns}, {manifest.num_clusters}/{manifest.num_codes}",
        metrics=_metrics_text(manifest.metrics),
    )


def _metrics_text(metrics: Mapping[str, JsonValue]) -> str:
    found = []
    for key, name, form in METRICS:
        value = metrics.get(key)
        if isinstance(value, int | float):
            found.append(f"{name} {value:{form}}")
    return ", ".join(found)


def activate(name: str, version: str, models: Models = None) -> None:
    """Make a version the one that is served; it is verified first."""
    _registry(models).activate(name, version)
    print_line(f"{name} {version} is active")


def rollback(name: str, models: Models = None) -> None:
    """Go back to the version that was active before; again, one further back."""
    version = _registry(models).rollback(name)
    print_line(f"{name} {version} is active again")


def verify(
    name: Annotated[str | None, typer.Argument(help="Model; all of them by default.")] = None,
    version: Annotated[str | None, typer.Argument(help="Version; default the active one.")] = None,
    models: Models = None,
) -> None:
    """Check every file against its checksum: of a version, or of all versions of all models."""
    registry = _registry(models)
    if name is not None:
        _say_verified(registry.verify(name, version))
        return
    damaged = 0
    for model in registry.names():
        for each_version in _versions(registry, model):
            try:
                _say_verified(registry.verify(model, each_version))
            except ArtifactError as error:
                damaged += 1
                print_error(str(error))
    if damaged:
        raise typer.Exit(2)


def _say_verified(manifest: Manifest) -> None:
    count = len(manifest.files)
    print_line(f"{manifest.name} {manifest.version}: {count} files are as published")


def _listed(models: list[str] | None) -> str | None:
    return ",".join(models) if models else None


def _with_default(settings: ServerSettings, worker_settings: WorkerSettings) -> ServerSettings:
    """Settings with one of the models that the worker in this process serves as the default."""
    from object_storage.registry import open_registry
    from worker.settings import models_to_serve

    registry = open_registry(settings.models_dir)
    names = models_to_serve(worker_settings, registry)
    default = settings.default_model or _first_readable(registry, names)
    if default in registry.models() and default not in names:
        served = ", ".join(names)
        raise ConfigError(f"MASC_DEFAULT_MODEL: {default!r} is not served, but {served}")
    if not settings.default_model and names[1:]:
        logger.warning("MASC_DEFAULT_MODEL names none: requests without a model get %s", default)
    return settings.model_copy(update={"default_model": default})


def _first_readable(registry: Registry, names: Sequence[str]) -> str:
    """The first model whose manifest can be read; where none can, the first."""
    for name in names:
        try:
            return registry.manifest(name).name
        except ArtifactError as error:
            logger.debug("not the default: %s", error)
    return names[0]


def _serve(settings: ServerSettings, worker_settings: WorkerSettings | None) -> None:
    """Run the front end, and a worker in the same process if there are settings for one."""
    from prometheus_client import CollectorRegistry

    from object_storage.registry import open_registry
    from server.app import create_app
    from server.process import listen, serve
    from worker.jobs.connect import connect

    metrics = CollectorRegistry()
    queue = connect(settings.queue_url, settings.limits, settings.queue_prefix)
    app = create_app(settings, queue, open_registry(settings.models_dir), metrics)
    with listen(
        settings.host,
        settings.port,
        keys=settings.api_keys_file is not None,
        published_host=settings.published_host,
    ) as listener:
        if worker_settings is None:
            serve(app, listener)
            return
        from worker.main import LoopThread, build_worker

        loop = build_worker(worker_settings, queue, metrics)
        thread = LoopThread(loop)
        thread.start()
        try:
            serve(app, listener, is_broken=lambda: thread.failure is not None)
        finally:
            # The front end has drained: every client has its answer.
            loop.stop(0.0)
            thread.join(END_SECONDS)
    if thread.failure is not None:
        raise thread.failure


def _training(attribute: str) -> Any:  # noqa: ANN401 - a Typer group or a command
    return getattr(importlib.import_module("training.cli"), attribute)


def _keys() -> typer.Typer:
    from server.auth.command import keys_app

    return keys_app()


def _placeholder() -> None:
    """Stand for a command in the overview; `build_app` puts the real one in when it is called."""
    raise ConfigError("this command takes no options before its name")


if __name__ == "__main__":
    main()
