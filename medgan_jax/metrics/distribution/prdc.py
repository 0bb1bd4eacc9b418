"""Precision, recall, density and coverage."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.features import feature_sets


def prdc(
    fakes: ArrayLike,
    reals: ArrayLike,
    *,
    neighbours: int = 5,
    precision_neighbours: int = 3,
    seed: int = 0,
    replicates: int = 200,
) -> dict[str, Estimate]:
    """Precision, recall, density and coverage: how far each set lies in the balls around the images of the other.

    The ball of an image reaches to the k-th nearest other image of its own set; its border belongs to it, and a copy
    of the image is a neighbour at distance 0.

    - precision: the share of fakes in the ball of any real; recall: the share of reals in the ball of any fake
      (Kynkäänniemi et al. 2019, arXiv:1904.06991).
    - density: the mean number of reals' balls that a fake is in, over k; may exceed 1. coverage: the share of reals
      with a fake in their ball (Naeem et al. 2020, arXiv:2002.09797).

    All depend on the sizes of the sets and on k: compare only values of the same. The best coverage that can be
    expected is not 1, but that of another set of real images of the same size.

    In a replicate a ball reaches to where the other images have been drawn k times in all.

    Args:
      fakes: features, (N, D), N > k.
      reals: features, (M, D), M > k.
      neighbours: k of density and coverage, 5 as published.
      precision_neighbours: k of precision and recall, 3 as published.
      seed: of the interval.
      replicates: of the bootstrap; 0 for the values alone.

    Returns:
      Estimates by name; all but density lie in [0, 1].

    Raises:
      ValueError: shapes do not fit, there are too few images, or values are not finite.
    """
    from scipy.spatial.distance import cdist  # here, because it takes long to import

    counts = (precision_neighbours, neighbours)
    if min(counts) < 1:
        raise ValueError(f"neighbours must be at least 1, got {counts}")
    fakes, reals = feature_sets(fakes, reals, least=max(counts) + 1)
    # From differences, not from products: copies are at distance 0 exactly, however far from the origin.
    between = cdist(reals, fakes, "sqeuclidean")
    fake_balls, real_balls = (_Balls(cdist(x, x, "sqeuclidean"), counts) for x in (fakes, reals))

    def overlaps(fake_weights: np.ndarray, real_weights: np.ndarray) -> dict[str, float]:
        fake, real = fake_weights > 0, real_weights > 0
        distances = between[np.ix_(real, fake)]
        fake_radii, _ = fake_balls.radii(fake_weights)
        real_radii, real_wide = real_balls.radii(real_weights)
        fake_weights, real_weights = fake_weights[fake], real_weights[real]
        in_wide = distances <= real_wide[:, None]
        return {
            "precision": fake_weights @ (distances <= real_radii[:, None]).any(axis=0),
            "recall": real_weights @ (distances <= fake_radii).any(axis=1),
            "density": real_weights @ in_wide @ fake_weights * len(reals) / neighbours,
            "coverage": real_weights @ in_wide.any(axis=1),
        }

    estimates = bootstrap(overlaps, (len(fakes), len(reals)), seed=seed, replicates=replicates, bounds=(0, np.inf))
    return {
        name: x if name == "density" else Estimate(min(1.0, x.value), min(1.0, x.low), min(1.0, x.high))
        for name, x in estimates.items()
    }


class _Balls:
    """The nearest other images of each image of a set, from their squared distances."""

    def __init__(self, distances: np.ndarray, counts: Sequence[int]) -> None:
        self._counts = counts
        np.fill_diagonal(distances, -1)  # first in its row, before any copy
        # All that a replicate can need: that so many images are drawn less than k times has a chance below 1e-20.
        kept = slice(1, 51 + 10 * max(counts))
        self._nearest = np.argsort(distances, axis=1, kind="stable")[:, kept]
        self._distances = np.take_along_axis(distances, self._nearest, axis=1)

    def radii(self, weights: np.ndarray) -> list[np.ndarray]:
        """For each k, the squared radii of the balls around the images with a weight."""
        drawn = weights > 0
        size, distances = len(weights), self._distances[drawn]
        reached = np.cumsum(np.rint(weights * size)[self._nearest[drawn]], axis=1)
        places = [np.minimum((reached < count).sum(axis=1), distances.shape[1] - 1) for count in self._counts]
        border = 1 + 1e-9  # rounding must not decide whether copies of the k-th nearest image are inside
        return [np.take_along_axis(distances, place[:, None], axis=1)[:, 0] * border for place in places]
