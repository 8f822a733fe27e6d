"""``masc keys``: makes API keys, lists and revokes them.

A key is shown once, alone on standard output; the file gets its hash. The rest of the file stays as
people wrote it, comments included.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from masc_core.errors import ConfigError
from masc_core.io.bounded import decode_text, read_file
from masc_core.io.files import atomic_write
from masc_core.terminal import Json, output, print_line, print_table
from server.auth.api_keys import MAX_BYTES, hash_key, new_key, parse_keys, read_keys
from worker.jobs.priority import Priority

PRIVATE = 0o600
# The head of an entry, and the comments right above it.
ENTRY = re.compile(r"^(?:[ \t]*#.*\n)*[ \t]*\[\[[ \t]*keys[ \t]*\]\]", re.MULTILINE)

File = Annotated[
    Path | None, typer.Option(help="The file of keys, made if need be [env MASC_API_KEYS_FILE].")
]


def keys_app() -> typer.Typer:
    """The commands."""
    app = typer.Typer(no_args_is_help=True)
    app.command("create")(create)
    app.command("list")(list_keys)
    app.command("revoke")(revoke)
    return app


def create(
    name: Annotated[str, typer.Argument(help="Whose it is; shows in the log.")],
    file: File = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="0 is no limit [default MASC_RATE_LIMIT].")
    ] = None,
    queue_share: Annotated[
        float | None,
        typer.Option(help="Share of the queue, above 0 and up to 1 [default MASC_QUEUE_SHARE]."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of its jobs among those of others [default 1].")
    ] = None,
    priority: Annotated[
        Priority | None, typer.Option(help="The highest it may ask for [default interactive].")
    ] = None,
) -> None:
    """Make a key and print it, this once; a service that runs takes it within a second."""
    path = _keys_file(file)
    key = new_key()
    fields = {
        "name": name,
        "sha256": hash_key(key),
        "requests_per_minute": requests_per_minute,
        "queue_share": queue_share,
        "weight": weight,
        "priority": priority,
    }
    lines = [
        f"{field} = {json.dumps(value)}" for field, value in fields.items() if value is not None
    ]
    with _editing(path):
        before = _content(path)
        gap = "\n\n" if before.strip() else ""
        _replace(path, before.rstrip() + gap + "\n".join(["[[keys]]", *lines, ""]))
    typer.echo(f"{path} has its hash; the key itself is shown only now:", err=True)
    typer.echo(key)


def list_keys(file: File = None, *, as_json: Json = False) -> None:
    """List whose keys there are, and their limits where they have their own."""
    keys = read_keys(_keys_file(file))
    if as_json:
        output().print_json(json.dumps([key.model_dump(exclude={"sha256"}) for key in keys]))
        return
    rows = [
        (
            key.name,
            _limit(key.requests_per_minute),
            _limit(key.queue_share),
            f"{key.weight:g}",
            key.priority,
        )
        for key in keys
    ]
    head = ("name", "requests a minute", "share of the queue", "weight", "highest priority")
    print_table(head, rows)


def _limit(own: float | None) -> str:
    return "default" if own is None else str(own)


def revoke(name: str, file: File = None) -> None:
    """Take a key out of the file; a service that runs refuses it within a second."""
    path = _keys_file(file)
    with _editing(path):
        content = _content(path)
        names = [key.name for key in parse_keys(path, content.encode())]
        if name not in names:
            raise ConfigError(f"{path}: there is no key of that name")
        starts = [*(match.start() for match in ENTRY.finditer(content)), len(content)]
        index = names.index(name)
        if len(starts) != len(names) + 1:
            raise ConfigError(f"{path}: not every entry begins with [[keys]], edit it by hand")
        _replace(path, content[: starts[index]] + content[starts[index + 1] :])
    print_line(f"{name} is revoked")


def _keys_file(given: Path | None) -> Path:
    from server.settings import load_settings  # noqa: PLC0415 - brings the queue's modules

    path = load_settings(api_keys_file=given).api_keys_file
    if path is None:
        raise ConfigError("which file? give --file, or set MASC_API_KEYS_FILE")
    return path.resolve()  # a link stays one


@contextmanager
def _editing(path: Path) -> Iterator[None]:
    """Keep other editors of a file of this folder waiting."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _content(path: Path) -> str:
    """All of the file; nothing, if there is none yet."""
    if not path.exists():
        return ""
    read_keys(path)
    return decode_text(read_file(path, MAX_BYTES))


def _replace(path: Path, content: str) -> None:
    """Write what has been proved right, with the permissions that the file has."""
    parse_keys(path, content.encode())
    mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE
    atomic_write(path, content.encode(), mode)
