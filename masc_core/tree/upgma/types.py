"""Types of the linkage package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ProductArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
ClusterIndex = int | np.integer[Any]  # the loops' counters are unsigned, ids are int32
