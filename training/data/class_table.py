"""``classes.txt``: what the classes of a set of images are called.

One line a class: its key (the name of its folder), a tab, the name to display; or that name alone.
The file stands in the folder of the images or in the folder above, where it serves training and
validation images alike.
"""

from __future__ import annotations

from pathlib import Path

from masc_core.errors import ArtifactError

TABLE = "classes.txt"


def read_class_table(folder: Path) -> tuple[tuple[str, str], ...]:
    """Key and name of each class, in the order of the file; nothing where there is none.

    Raises
    ------
    ArtifactError
        The file cannot be read.
    """
    for path in (folder / TABLE, folder.parent / TABLE):
        if path.is_file():
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ArtifactError(path, f"cannot be read ({error})") from error
            rows = (line.partition("\t") for line in lines if line.strip())
            return tuple((key.strip(), name.strip() or key.strip()) for key, _, name in rows)
    return ()
