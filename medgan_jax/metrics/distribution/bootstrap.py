"""Bootstrap intervals over images (Efron & Tibshirani 1993, An Introduction to the Bootstrap)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, `low` to `high`, which contains it; without replicates all three are equal."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., Any],
    sizes: Sequence[int],
    *,
    seed: int,
    replicates: int = 200,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Any:
    """Evaluates a statistic of sets of images, and its interval from resampled sets.

    Each replicate draws as many images from each set as it has, with repetition. Images are resampled, not their
    patches or pairs, because only images are independent. A draw that holds one image only is drawn again.

    The interval is the percentile interval (chapter 13) of the replicates, shifted so that their mean is the value.
    The shift is needed because repeated images make distances larger and overlaps smaller: this is the bootstrap's
    estimate of bias (section 10.2), here mostly an effect of the repetition itself. The interval shows how far chance
    moves the value; it corrects no bias of the statistic. For two sets of the same distribution the intervals of
    distances are too wide, by up to a factor of two in simulations.

    Why not `scipy.stats.bootstrap`: the statistic gets weights in place of images, so that kernels, distances and
    projections are computed once and not for each replicate.

    Args:
      statistic: takes one float64 array per set, (size,): the weight of each image, of sum 1. Returns a float, or a
        dict of floats with the same keys at each call.
      sizes: the number of images in each set, at least 2.
      seed: of the draws.
      replicates: how many; with 0 the interval is the value alone.
      bounds: the range of the statistic; values and intervals are clipped to it.

    Returns:
      An `Estimate`, or a dict of them.

    Raises:
      ValueError: a set has fewer than two images.
    """
    if min(sizes) < 2:
        raise ValueError(f"each set needs at least 2 images, got {tuple(sizes)}")
    generator = np.random.Generator(np.random.PCG64(seed))
    value = statistic(*(np.full(size, 1 / size) for size in sizes))
    drawn = [statistic(*(_weights(generator, size) for size in sizes)) for _ in range(replicates)]
    if isinstance(value, dict):
        return {key: _estimate(value[key], [replicate[key] for replicate in drawn], bounds) for key in value}
    return _estimate(value, drawn, bounds)


def _weights(generator: np.random.Generator, size: int) -> np.ndarray:
    while True:
        counts = np.bincount(generator.integers(size, size=size), minlength=size)
        if np.count_nonzero(counts) > 1:
            return counts / size


def _estimate(value: float, drawn: list[float], bounds: tuple[float, float]) -> Estimate:
    ends = [value]
    if drawn:
        ends += list(np.percentile(drawn, (2.5, 97.5)) - np.mean(drawn) + value)
    value, low, high = (float(np.clip(x, *bounds)) for x in (value, min(ends), max(ends)))
    return Estimate(value, low, high)
