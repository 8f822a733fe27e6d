"""Types of the linkage package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.int32]
ProductArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
ClusterIndex = int | np.integer[Any]  # the loops' counters are unsigned, ids are int32
