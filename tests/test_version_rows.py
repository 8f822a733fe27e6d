from pathlib import Path

from masc import version_rows
from masc_core.bundle.registry import Registry
from tests.tiny_bundle import save_bundle, save_tiny_bundle, tiny_card, tiny_parts


def test_a_row_says_what_people_choose_by(tmp_path: Path) -> None:
    metrics = {
        "frechet_inception_distance": 12.345,
        "class_agreement": 0.5,
        "bits_per_position": 3,
        "other": 1,
    }
    card = tiny_card(version="2").model_copy(update={"metrics": metrics})
    save_bundle(tmp_path / "tiny" / "2", card, tiny_parts())
    save_tiny_bundle(tmp_path)
    first, second = version_rows(Registry(tmp_path))
    assert (first.version, first.state, first.metrics) == ("1", "*", "")
    assert second.state == ""
    assert second.metrics == "bits 3.000, FID 12.35, agreement 50.0%"
    assert second.sizes == "4x4, 16/32"
    files = (tmp_path / "tiny" / "2").iterdir()
    size = sum(path.stat().st_size for path in files if path.suffix != ".json")
    assert second.megabytes == f"{size / 1e6:.1f}"


def test_a_damaged_version_says_so_and_hides_nothing(tmp_path: Path) -> None:
    for version in ("1", "2"):
        save_tiny_bundle(tmp_path, version=version)
    (tmp_path / "tiny" / "1" / "manifest.json").write_bytes(b"{}")
    (tmp_path / "tiny" / "2" / "prior.npz").unlink()
    first, second = version_rows(Registry(tmp_path))
    assert first.metrics.startswith("damaged: ")
    assert second.metrics == "damaged: No such file or directory"


def test_a_sequence_is_one_row(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, gigatok=True)
    (row,) = version_rows(Registry(tmp_path))
    assert row.sizes == "1x16, 16/32"
