from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.errors import ArtifactError, ConfigError
from training.pretrained.class_names import read_class_names


def test_imagenets_names_come_in_the_order_of_its_ids() -> None:
    names = read_class_names(1000)
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


def test_names_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\nsea lion \n")
    assert read_class_names(2, path) == ("cat", "sea lion")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"cat\n", "has 1 lines, but there are 2 classes"),
        (b"cat\n\n", "line 2 is empty"),
        (b"cat\n\xff\n", "line 2 is not UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=complaint):
        read_class_names(2, path)


def test_a_name_that_no_model_could_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\n" + "x" * 10**6)
    with pytest.raises(ConfigError, match=r"classes: .*names\.txt: 1: String should have at most"):
        read_class_names(2, path)


def test_other_numbers_of_classes_need_a_file() -> None:
    with pytest.raises(ConfigError, match="classes: must be given, a file with 10 names"):
        read_class_names(10)
