"""Precision, recall, density and coverage."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.sets import feature_sets

_NEAR = 1e-4  # of the squared norms: below, rounding shows in a squared distance computed from products


def manifold(
    fakes: ArrayLike,
    reals: ArrayLike,
    *,
    neighbours: int = 5,
    precision_neighbours: int = 3,
    seed: int = 0,
    replicates: int = 200,
) -> dict[str, Estimate]:
    """How far two sets lie in each other's neighbourhoods: balls around images, up to the k-th nearest of their set.

    "precision": the share of fakes in some real's ball. "recall": the share of reals in some fake's ball (Kynkäänniemi
    et al. 2019, arXiv:1904.06991). "density": how many reals' balls a fake is in, over k; may exceed 1. "coverage": the
    share of reals whose ball has a fake in it (Naeem et al. 2020, arXiv:2002.09797). The border belongs to the ball,
    and a copy of an image is a neighbour at distance 0.

    All depend on the sizes of the sets and on k: compare only values of the same. Coverage of another set of real
    images of the same size, not 1, is what can be reached.

    In the interval's replicates a ball reaches to where the other images within have been drawn k times.

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
    counts = (precision_neighbours, neighbours)
    if min(counts) < 1:
        raise ValueError(f"neighbours must be at least 1, got {counts}")
    fakes, reals = feature_sets(fakes, reals, least=max(counts) + 1)
    mean = (fakes.mean(axis=0) + reals.mean(axis=0)) / 2  # far from the origin, products would lose the distances
    fakes, reals = fakes - mean, reals - mean
    between = _squared_distances(reals, fakes)
    fake_neighbours, real_neighbours = _Neighbours(fakes, counts), _Neighbours(reals, counts)

    def overlaps(fake_shares: np.ndarray, real_shares: np.ndarray) -> dict[str, float]:
        fake, real = fake_shares > 0, real_shares > 0
        distances = between[np.ix_(real, fake)]
        fake_radii, _ = fake_neighbours.radii(fake_shares)
        real_radii, real_wide = real_neighbours.radii(real_shares)
        fake_shares, real_shares = fake_shares[fake], real_shares[real]
        in_wide = distances <= real_wide[:, None]
        return {
            "precision": fake_shares @ (distances <= real_radii[:, None]).any(axis=0),
            "recall": real_shares @ (distances <= fake_radii).any(axis=1),
            "density": real_shares @ in_wide @ fake_shares * len(reals) / neighbours,
            "coverage": real_shares @ in_wide.any(axis=1),
        }

    estimates = bootstrap(overlaps, (len(fakes), len(reals)), seed=seed, replicates=replicates, bounds=(0, np.inf))
    return {name: estimate if name == "density" else _at_most_one(estimate) for name, estimate in estimates.items()}


def _at_most_one(estimate: Estimate) -> Estimate:
    return Estimate(*(min(1.0, number) for number in dataclasses.astuple(estimate)))


class _Neighbours:
    """The nearest images of one set to each of them."""

    def __init__(self, x: np.ndarray, counts: Sequence[int]) -> None:
        self._counts = counts
        distances = _squared_distances(x, x)
        np.fill_diagonal(distances, -1)  # first in its row whatever copies there are
        # All that a replicate can need: that so many images are drawn less than k times has a chance below 1e-20.
        kept = slice(1, 51 + 10 * max(counts))
        self._nearest = np.argsort(distances, axis=1, kind="stable")[:, kept]
        self._distances = np.take_along_axis(distances, self._nearest, axis=1)

    def radii(self, shares: np.ndarray) -> list[np.ndarray]:
        """For each k, the squared radii of the balls around the images with a share."""
        drawn = shares > 0
        size, distances = len(shares), self._distances[drawn]
        reached = np.cumsum(np.rint(shares * size)[self._nearest[drawn]], axis=1)
        places = [np.minimum((reached < count).sum(axis=1), distances.shape[1] - 1) for count in self._counts]
        border = 1 + 1e-9  # rounding must not decide whether copies of the k-th nearest image are inside
        return [np.take_along_axis(distances, place[:, None], axis=1)[:, 0] * border for place in places]


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all rows, (N, M); those so small that rounding shows, from the differences."""
    norms = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    distances = norms - 2 * (x @ y.T)
    near = distances <= _NEAR * norms
    for i in np.flatnonzero(near.any(axis=1)):
        distances[i, near[i]] = ((x[i] - y[near[i]]) ** 2).sum(axis=1)
    return distances
