"""Typer commands made from stage configurations: a TOML file, and every key also a flag."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.config import load_config

Config = TypeVar("Config", bound=BaseModel)


def stage_command(
    config_class: type[Config],
    run: Callable[[Config], None],
    description: str,
    *,
    resumes: bool = True,
) -> Callable[..., None]:
    """A function whose signature Typer turns into a command.

    Parameters
    ----------
    config_class : configuration of the stage; each field becomes ``--field``, unset by default
    run : called with the validated configuration
    description : help text of the command
    resumes : whether the stage goes on from where it was interrupted
    """

    def command(**values: Any) -> None:  # noqa: ANN401 - as Typer parsed them
        path = values.pop("config")
        flags = {key: _parse(config_class.model_fields[key], v) for key, v in values.items()}
        stage = load_config(config_class, path, flags)
        try:
            run(stage)
        except KeyboardInterrupt as interrupt:
            way_on = "goes on from here" if resumes else "starts again"
            typer.echo(f"masc: interrupted; the same command {way_on}", err=True)
            raise typer.Exit(130) from interrupt

    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[Path | None, typer.Argument(help="TOML file of the stage")],
        )
    ]
    for name, field in config_class.model_fields.items():
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_flag_type(field), _option(name, field)],
            )
        )
    command.__doc__ = description
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(name: str, field: FieldInfo) -> Any:  # noqa: ANN401 - Typer's own type
    text = field.description or ""
    if not field.is_required() and field.default not in (None, ()):
        text += (
            f" (default: {_show(field.default)})" if text else f"default: {_show(field.default)}"
        )
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
