"""Folders of versions and models that cannot be read: named once, and hiding nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from masc import version_rows
from masc_core.bundle.manifest import MANIFEST_FILE
from masc_core.bundle.registry import CURRENT_FILE, HISTORY_FILE, Registry
from masc_core.errors import ArtifactError
from tests.hostile_files import link_to_itself, unprivileged
from tests.tiny_bundle import save_tiny_bundle


def loop_of_links(path: Path) -> None:
    shutil.rmtree(path)
    link_to_itself(path)


def link_to_where_nobody_may_go(path: Path) -> None:
    hidden = path.parent / ".hidden"
    hidden.mkdir()
    path.rename(hidden / "away")
    path.symlink_to(".hidden/away")
    hidden.chmod(0)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "may not be entered": lambda path: path.chmod(0o644),
    "no permission": lambda path: path.chmod(0),
    "loop of links": loop_of_links,
    "link to where nobody may go": link_to_where_nobody_may_go,
}


@pytest.fixture
def root() -> Iterator[Path]:
    """Model ``a`` with version 1 active and 2 beside it, and ``b``; others may enter it."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name, version in (("a", "2"), ("a", "1"), ("b", "1")):
            save_tiny_bundle(root, name, version)
        yield root
        for path in root.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_version_hides_no_other(root: Path, kind: str) -> None:
    UNREADABLE[kind](root / "a" / "2")
    with unprivileged():
        registry = Registry(root)
        assert registry.models() == ("a", "b")
        assert registry.versions("a") == ("1", "2")
        assert registry.verify("a").version == "1"
        with pytest.raises(ArtifactError, match=r"a/2/.*: cannot be read: "):
            registry.verify("a", "2")
        first, second, third = version_rows(registry)
    assert [row.state for row in (first, second, third)] == ["*", "previous", "*"]
    assert second.metrics.startswith("damaged: cannot be read: ")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_model_hides_no_other(root: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    UNREADABLE[kind](root / "b")
    with unprivileged():
        registry = Registry(root)
        for _ in range(3):
            assert registry.models() == ("a",)
            assert registry.default() == "a"
        with pytest.raises(ArtifactError, match=r"b.*: cannot be read: "):
            registry.verify("b")
        *_, last = version_rows(registry)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"model b is left out: {root}/b/current: ")
    assert (last.name, last.version) == ("b", "1" if kind == "may not be entered" else "")
    assert last.metrics.startswith("damaged: cannot be read: ")


def test_a_root_that_may_not_be_entered_is_named(root: Path) -> None:
    root.chmod(0o744)
    with unprivileged(), pytest.raises(ArtifactError, match="a: cannot be read: Perm"):
        Registry(root).models()


def test_a_choice_in_a_loop_is_no_version(root: Path) -> None:
    for name in (CURRENT_FILE, HISTORY_FILE):
        (root / "a" / name).unlink()
        link_to_itself(root / "a" / name)
    registry = Registry(root)
    assert (registry.names(), registry.models()) == (("a", "b"), ("b",))
    assert registry.versions("a") == ("1", "2")
    with pytest.raises(ArtifactError, match=r"a/current: cannot be read: Too many levels"):
        registry.current("a")


def test_a_manifest_in_a_loop_is_named(root: Path) -> None:
    path = root / "a" / "2" / MANIFEST_FILE
    path.unlink()
    link_to_itself(path)
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: Too many levels"):
        Registry(root).activate("a", "2")
    assert Registry(root).current("a") == "1"
