"""No document points at what is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.docs.markdown import DOCUMENTS, INLINE, Document

# Folders that users make, or that a run leaves.
MADE = ("data/", "runs/", "models/<")
PATH = re.compile(
    r"(?:masc_core|training|worker|server|tests|benchmarks|docker|docs|models)/[\w/.\-]*"
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    document = Document(path)
    for link in document.links():
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in Document(target).anchors(), f"{document.name}: {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    document = Document(path)
    for code in INLINE.findall(document.prose):
        if PATH.fullmatch(code) and not code.startswith(MADE):
            assert (ROOT / code).exists(), f"{document.name}: {code}"
