"""The project's documents, taken apart: blocks of code, links, headings, tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.command_line import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SEPARATORS = {"|", "&&", "&", ";", ">", "<"}


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path below the root."""
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """What is no block of code."""
        return FENCED.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """Blocks of code in one language."""
        return [text for kind, text in FENCED.findall(self.text) if kind == language]

    def links(self) -> list[str]:
        """Targets of all links and pictures."""
        return LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        """What ``#...`` can lead to, as GitHub makes it of headings."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in HEADING.findall(self.prose)
        }

    def rows(self, *header: str) -> Iterator[list[str]]:
        """Cells of all tables whose header begins so."""
        inside = False
        for line in self.prose.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if not line.startswith("|"):
                inside = False
            elif cells[: len(header)] == list(header):
                inside = True
            elif inside and not line.startswith("|--"):
                yield [cell.strip("| ") for cell in cells]

    def commands(self) -> Iterator[list[str]]:
        """Words of every command of a shell block, and of inline code that has an argument."""
        for block in self.blocks("sh"):
            yield from commands(block)
        for code in INLINE.findall(self.prose):
            if " " in code and "..." not in code:
                yield from commands(code)


def commands(script: str) -> Iterator[list[str]]:
    """Words of every command; what shells understand between commands is left out."""
    for line in script.replace("\\\n", " ").splitlines():
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        except ValueError:
            continue
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in SEPARATORS:
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                words.append(word)
