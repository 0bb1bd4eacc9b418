"""Fréchet inception distance."""

import math

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.sets import feature_sets

_RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9)


def fid(fakes: ArrayLike, reals: ArrayLike, *, seed: int = 0, replicates: int = 200) -> tuple[Estimate, float]:
    """The squared Fréchet distance of the Gaussians with the sets' means and covariances (Heusel et al. 2017).

    arXiv:1706.08500. Covariances are divided by n - 1.

    The value is too large for finite sets, the more so the smaller they are. How much so is estimated as Chong &
    Forsyth (2020, arXiv:1911.07023) do: the value less where a line in 1 / n, through the FIDs of random subsets of
    half to all of the images, meets 1 / n = 0. Both sets shrink by the same ratio. With fewer images than features
    (2,048 for Inception) the FID is no such line, and the true bias is larger than the estimate. Compare FIDs only of
    sets of the same sizes, and prefer KID for small ones. The interval tells how far chance moves the value, and not
    where the FID of infinite sets lies.

    Each replicate takes time of order k^3, k = min(N, M, D): beyond k = 630 there are fewer than 200, at 1,000 at most
    50, from 1,360 on at most 20, whose interval is coarse. Sets of 5,000 take minutes.

    Args:
      fakes: features, (N, D), N >= 2.
      reals: features, (M, D), M >= 2.
      seed: of the subsets and the interval.
      replicates: of the bootstrap, at most; 0 for the value alone.

    Returns:
      The distance, and the estimated part of it that is bias: NaN if `replicates` is 0, or a set has fewer than 4
      images, of which no two subsets differ in size.

    Raises:
      ValueError: shapes do not fit, there are too few images, or values are not finite.
    """
    fakes, reals = feature_sets(fakes, reals)
    rank = min(*fakes.shape, len(reals))

    def distance(fake_shares: np.ndarray, real_shares: np.ndarray) -> float:
        return _frechet(fakes, reals, fake_shares, real_shares)

    estimate = bootstrap(
        distance,
        (len(fakes), len(reals)),
        seed=seed,
        replicates=min(replicates, max(20, int(50 * (1000 / rank) ** 3))),
        bounds=(0, math.inf),
    )
    bias = _bias(estimate.value, fakes, reals, seed, draws=4 if rank <= 1000 else 1) if replicates else math.nan
    return estimate, bias


def _frechet(fakes: np.ndarray, reals: np.ndarray, fake_shares: np.ndarray, real_shares: np.ndarray) -> float:
    """For the roots A, B of two covariances, tr (cov cov')^(1/2) is the sum of the singular values of A B^T."""
    fake_mean, fake_root = _moments(fakes, fake_shares)
    real_mean, real_root = _moments(reals, real_shares)
    product = fake_root @ real_root.T
    if len(product) > product.shape[1]:
        product = product.T
    # A tenth of the time of numpy's singular values, for errors of 1e-8 of the largest.
    singular = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(0))
    shift = fake_mean - real_mean
    return float(shift @ shift + (fake_root**2).sum() + (real_root**2).sum() - 2 * singular.sum())


def _moments(x: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a matrix A of at most D rows with A^T A the covariance."""
    mean = shares @ x
    drawn = shares > 0
    root = np.sqrt(shares[drawn] * len(x) / (len(x) - 1))[:, None] * (x[drawn] - mean)
    return mean, np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root


def _bias(value: float, fakes: np.ndarray, reals: np.ndarray, seed: int, *, draws: int) -> float:
    generator = np.random.Generator(np.random.PCG64(seed))
    inverse, values = [1.0], [value]
    for ratio in _RATIOS:
        sizes = [max(2, round(ratio * len(x))) for x in (fakes, reals)]
        for _ in range(draws):
            parts = [x[generator.permutation(len(x))[:size]] for x, size in zip((fakes, reals), sizes, strict=True)]
            inverse.append((len(fakes) / sizes[0] + len(reals) / sizes[1]) / 2)
            values.append(_frechet(*parts, *(np.full(size, 1 / size) for size in sizes)))
    if np.ptp(inverse) == 0:
        return math.nan
    _, intercept = np.polyfit(inverse, values, 1)
    return float(value - intercept)
