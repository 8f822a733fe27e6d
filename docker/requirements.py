"""Print what an image needs, one requirement a line: the base dependencies, and those of extras.

``python requirements.py [EXTRA ...]`` in the folder of ``pyproject.toml``. It lets dependencies be
installed before the sources are there.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
requirements = list(project["dependencies"])
for extra in sys.argv[1:]:
    requirements += project["optional-dependencies"][extra]
sys.stdout.write("\n".join(requirements) + "\n")
