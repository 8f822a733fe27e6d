"""Mathematics and file formats: tree, priors, models, sampling, model bundles.

What programs and notebooks use of them is named here, and imported when it is asked for: this
package is light, torch and what builds trees are not.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masc_core.api import Generation, Model, load_model
    from masc_core.errors import MascError
    from masc_core.prior import ClusterMap
    from masc_core.tree import SemanticTree, build_tree

_PLACES = {
    "ClusterMap": "prior",
    "Generation": "api",
    "MascError": "errors",
    "Model": "api",
    "SemanticTree": "tree",
    "build_tree": "tree",
    "load_model": "api",
}

__all__ = [
    "ClusterMap",
    "Generation",
    "MascError",
    "Model",
    "SemanticTree",
    "build_tree",
    "load_model",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
