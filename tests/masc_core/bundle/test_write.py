from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.bundle.write import BundleDraft, draft_version
from tests.tiny_bundle import tiny_card, tiny_parts


def test_a_draft_is_measured_before_it_is_listed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with draft_version(Registry(tmp_path), "tiny", None) as draft:
        draft.write(tiny_card(version=draft.version), tiny_parts())
        assert draft.load("cpu").manifest.version == "1"
        assert registry.names() == ()
        written = draft.finish({"fid": 3.5}, b"a picture")
    assert registry.verify("tiny", "1") == written
    assert load_bundle(tmp_path / "tiny" / "1").manifest.metrics == {"psnr_db": 0.0, "fid": 3.5}
    assert (tmp_path / "tiny" / "1" / "samples.png").read_bytes() == b"a picture"


def test_a_draft_that_was_not_written_cannot_be_finished(tmp_path: Path) -> None:
    draft = BundleDraft(tmp_path, "1")
    with pytest.raises(RuntimeError, match="must be written"):
        draft.finish()


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), "1"), (("1", "2"), "3"), (("9", "10", "v11", "²"), "11"), (("first",), "1")],
)
def test_the_next_number(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    for name in names:
        (tmp_path / "m" / name).mkdir(parents=True)
    assert Registry(tmp_path).next_version("m") == expected
