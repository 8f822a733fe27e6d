"""Every command that a document shows is one that there is, with options that it takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from masc import build_app
from tests.command_line import ROOT
from tests.docs.markdown import DOCUMENTS, Document


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_masc_takes_what_is_written(path: Path) -> None:
    for words in Document(path).commands():
        if "masc" in words and words[0] in {"masc", "docker", "torchrun"}:
            parse(words[words.index("masc") + 1 :])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_has_the_targets(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in Document(path).commands():
        if words[0] == "make":
            named = {word for word in words[1:] if "=" not in word}
            assert named <= targets, words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_programs_know_their_options(path: Path) -> None:
    for words in Document(path).commands():
        programs = [word for word in words if re.fullmatch(r"benchmarks/\w+\.(py|sh)", word)]
        for program in programs:
            text = (ROOT / program).read_text()
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in text, words


def parse(arguments: list[str]) -> None:
    """Let the command line read the arguments, and run nothing."""
    command = typer.main.get_command(build_app(arguments))
    rest = list(arguments)
    while isinstance(command, TyperGroup):
        if not rest or rest[0].startswith("-"):
            return
        found = command.commands.get(rest[0])
        assert found is not None, arguments
        command, rest = found, rest[1:]
    if rest:
        command.make_context("masc", rest)
