"""Diversity: the similarity of the images within one set, which is high after mode collapse."""

import numpy as np

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.paired import METRICS

_PAIRS = 1000
_BATCH = 25


def similarity_metric(size: int) -> str:
    """MS-SSIM, as in Odena et al. 2017 (arXiv:1610.09585), where images are large enough for it; else SSIM."""
    return "ms_ssim" if size >= METRICS["ms_ssim"].min_size else "ssim"


def pairwise_similarity(images: np.ndarray, *, seed: int = 0, replicates: int = 200) -> Estimate:
    """The mean similarity of two images of the set, over 1,000 random pairs, or all where there are fewer.

    Args:
      images: uint8, (N, H, W, 1 or 3), at least two.
      seed: of the pairs and the interval.
      replicates: of the bootstrap.

    Returns:
      From -1 to 1, by `similarity_metric`; above that of reals, the images are less diverse.
    """
    first, second = _pairs(len(images), seed)
    metric = METRICS[similarity_metric(min(images.shape[1:3]))].function
    scores = np.concatenate(
        [
            metric(*(uint8_to_unit(images[part]) for part in (first[i : i + _BATCH], second[i : i + _BATCH])))
            for i in range(0, len(first), _BATCH)
        ]
    )

    def mean(weights: np.ndarray) -> float:
        both = weights[first] * weights[second]
        return float(both @ scores / both.sum())

    return bootstrap(mean, [len(images)], seed=seed, replicates=replicates, bounds=(-1, 1))


def _pairs(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different images; each image is in the same number of pairs, give or take one."""
    order = np.random.default_rng(seed).permutation(number)
    shifts = range(1, 1 + max(1, min((number - 1) // 2, -(-_PAIRS // number))))
    first = np.tile(order, len(shifts))
    second = np.concatenate([np.roll(order, shift) for shift in shifts])
    return first[:_PAIRS], second[:_PAIRS]
