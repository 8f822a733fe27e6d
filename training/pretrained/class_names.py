"""Names of the classes of a checkpoint, which does not hold them."""

from __future__ import annotations

from pathlib import Path

from masc_core.bundle.manifest import check_class_names
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import decode_text, read_file
from masc_core.io.files import reading

IMAGENET = Path(__file__).with_name("imagenet1k.txt")
NUM_IMAGENET = 1000


def read_class_names(num_classes: int, path: Path | None = None) -> tuple[str, ...]:
    """Names in the order of the class ids, one per line of a text file; without it ImageNet's.

    Raises
    ------
    ConfigError : the names are not known
    ArtifactError : the file cannot be read, or does not hold that many names
    """
    if path is None:
        if num_classes != NUM_IMAGENET:
            raise ConfigError(
                f"classes: must be given, a file with {num_classes} names, one a line; only those "
                f"of ImageNet's {NUM_IMAGENET} classes are known"
            )
        path = IMAGENET
    try:
        with reading(path):
            lines = decode_text(read_file(path)).splitlines()
    except ValueError as error:
        raise ArtifactError(path, f"cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines)
    if len(names) != num_classes:
        raise ArtifactError(path, f"has {len(names)} lines, but there are {num_classes} classes")
    if "" in names:
        raise ArtifactError(path, f"line {names.index('') + 1} is empty")
    check_class_names(names, f"classes: {path}")
    return names
