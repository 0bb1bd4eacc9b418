"""Fréchet inception distance."""

import math

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.features import feature_sets

_RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9)


def fid(fakes: ArrayLike, reals: ArrayLike, *, seed: int = 0, replicates: int = 200) -> tuple[Estimate, float]:
    """The squared Fréchet distance of the Gaussians with the sets' means and covariances (Heusel et al. 2017).

    arXiv:1706.08500. Covariances are divided by n - 1.

    FID is biased: too large, the more so the smaller the sets. The bias is estimated as by Chong & Forsyth (2020,
    arXiv:1911.07023): FIDs of random subsets, of half to all images of both sets, are fitted by a line in 1 / n; the
    bias is the value less the line at 1 / n = 0. With fewer images than features (2,048 for Inception) the FID is not
    linear in 1 / n, and the true bias is larger. Compare FIDs only of sets of the same sizes, and prefer KID for small
    ones. The interval shows how far chance moves the value, not where the FID of infinite sets lies.

    A replicate takes time of order k^3, k = min(N, M, D). So there are fewer of them beyond k = 630: at most 50 at
    1,000, and at most 20 from 1,360 on, where the interval is coarse. Sets of 5,000 take minutes.

    Args:
      fakes: features, (N, D), N >= 2.
      reals: features, (M, D), M >= 2.
      seed: of the subsets and the interval.
      replicates: of the bootstrap, at most; 0 for the value alone.

    Returns:
      The distance, and how much of it is bias: NaN if `replicates` is 0, or a set has fewer than 4 images.

    Raises:
      ValueError: shapes do not fit, there are too few images, or values are not finite.
    """
    fakes, reals = feature_sets(fakes, reals)
    rank = min(*fakes.shape, len(reals))
    estimate = bootstrap(
        lambda fake_weights, real_weights: _frechet(fakes, reals, fake_weights, real_weights),
        (len(fakes), len(reals)),
        seed=seed,
        replicates=min(replicates, max(20, int(50 * (1000 / rank) ** 3))),
        bounds=(0, math.inf),
    )
    bias = _bias(estimate.value, fakes, reals, seed, draws=4 if rank <= 1000 else 1) if replicates else math.nan
    return estimate, bias


def _frechet(fakes: np.ndarray, reals: np.ndarray, fake_weights: np.ndarray, real_weights: np.ndarray) -> float:
    """For roots A, B of the two covariances, tr (cov cov')^(1/2) is the sum of the singular values of A B^T.

    `scipy.linalg.sqrtm` of the product of the covariances takes D^3 for any number of images, and fails where it is
    singular, as with fewer images than features.
    """
    fake_mean, fake_root = _moments(fakes, fake_weights)
    real_mean, real_root = _moments(reals, real_weights)
    product = fake_root @ real_root.T
    if len(product) > product.shape[1]:
        product = product.T
    # A tenth of the time of a singular value decomposition, for errors of 1e-8 of the largest.
    singular = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(0))
    shift = fake_mean - real_mean
    return float(shift @ shift + (fake_root**2).sum() + (real_root**2).sum() - 2 * singular.sum())


def _moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a matrix A of at most D rows with A^T A the covariance."""
    mean = weights @ x
    drawn = weights > 0
    root = np.sqrt(weights[drawn] * len(x) / (len(x) - 1))[:, None] * (x[drawn] - mean)
    return mean, np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _bias(value: float, fakes: np.ndarray, reals: np.ndarray, seed: int, *, draws: int) -> float:
    generator = np.random.Generator(np.random.PCG64(seed))
    inverse, values = [1.0], [value]
    for ratio in _RATIOS:
        sizes = [max(2, round(ratio * len(x))) for x in (fakes, reals)]
        for _ in range(draws):
            parts = [x[generator.permutation(len(x))[:size]] for x, size in zip((fakes, reals), sizes, strict=True)]
            inverse.append((len(fakes) / sizes[0] + len(reals) / sizes[1]) / 2)
            values.append(_frechet(*parts, *(np.full(size, 1 / size) for size in sizes)))
    if np.ptp(inverse) == 0:  # so few images that no two subsets differ in size
        return math.nan
    _, intercept = np.polyfit(inverse, values, 1)
    return float(value - intercept)
