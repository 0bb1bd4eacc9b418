"""Metrics of generated images against real ones as sets, with intervals that hold for small sets.

`sliced_wasserstein`, `checkerboard_index`, `pairwise_similarity` and `CopySearch` take uint8 images, (N, H, H, C), 0 to
255. `kid`, `fid` and `prdc` take vectors (N, D) that `Features.of` makes of such images. `memorization` and `copying_z`
take distances (N,) that `CopySearch.nearest` finds. Values are `Estimate`s: value, and low and high of a 95 % interval.
"""

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.checkerboard import checkerboard_index
from medgan_jax.metrics.distribution.diversity import pairwise_similarity
from medgan_jax.metrics.distribution.features import (
    PIXELS,
    PYRAMID,
    Features,
    efficientnet_features,
    inception_features,
)
from medgan_jax.metrics.distribution.fid import fid
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.memorization import CopySearch, copying_z, memorization
from medgan_jax.metrics.distribution.prdc import prdc
from medgan_jax.metrics.distribution.swd import sliced_wasserstein

__all__ = [
    "PIXELS", "PYRAMID", "CopySearch", "Estimate", "Features", "bootstrap", "checkerboard_index", "copying_z",
    "efficientnet_features", "fid", "inception_features", "kid", "memorization", "pairwise_similarity", "prdc",
    "sliced_wasserstein",
]  # fmt: skip
