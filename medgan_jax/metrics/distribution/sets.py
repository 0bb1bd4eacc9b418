"""What the measures on features ask of the two sets."""

import numpy as np
from numpy.typing import ArrayLike


def feature_sets(fakes: ArrayLike, reals: ArrayLike, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Checks two sets of features, (N, D) and (M, D), and returns them as float64.

    Raises:
      ValueError: a set is not a matrix, has fewer than `least` rows or values that are not finite, or D differs.
    """
    fakes, reals = np.asarray(fakes, np.float64), np.asarray(reals, np.float64)
    if fakes.ndim != 2 or reals.ndim != 2 or fakes.shape[1] != reals.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {fakes.shape} and {reals.shape}")
    if min(len(fakes), len(reals)) < least:
        raise ValueError(f"each set needs at least {least} images, got {len(fakes)} and {len(reals)}")
    if not (np.isfinite(fakes).all() and np.isfinite(reals).all()):
        raise ValueError("features must be finite")
    return fakes, reals
