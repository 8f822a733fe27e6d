"""What `make mutants` mutates is where it looks for it."""

from __future__ import annotations

import pytest

from tests.command_line import ROOT
from tests.mutation.targets import TARGETS, sources_of


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_has_its_sources_and_tests(name: str) -> None:
    assert sources_of(ROOT, TARGETS[name])
