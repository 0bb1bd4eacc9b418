"""Kernel inception distance."""

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.sets import feature_sets

_BLOCK = 2000  # images


def kid(fakes: ArrayLike, reals: ArrayLike, *, seed: int = 0, replicates: int = 200) -> Estimate:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018).

    arXiv:1801.01401. Zero on average for sets of the same distribution whatever their size, so below zero half of the
    time; not multiplied by 1000.

    The mean goes over all pairs of the sets. The usual mean over random subsets has the same expectation, but a larger
    variance: it skips pairs, weighs the others unevenly, and a small set has no use for subsets at all. A set of more
    than 2,000 images is divided at random into the least number of equal blocks of at most that many, and the pairs
    within blocks (between the sets: of the first block with the first, and so on, round and round) stand for all.

    In the interval's replicates a pair is two different images, counted as often as both were drawn; pairs of an image
    with itself would bring the bias back.

    Args:
      fakes: features, (N, D), N >= 2.
      reals: features, (M, D), M >= 2.
      seed: of the blocks and the interval.
      replicates: of the bootstrap; 0 for the value alone.

    Raises:
      ValueError: shapes do not fit, there are too few images, or values are not finite.
    """
    fakes, reals = feature_sets(fakes, reals)
    generator = np.random.Generator(np.random.PCG64(seed))
    rows, columns = _blocks(generator, len(fakes)), _blocks(generator, len(reals))
    pairs = [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(max(len(rows), len(columns)))]
    within_fakes = [(i, _kernel_of_pairs(fakes[i])) for i in rows]
    within_reals = [(i, _kernel_of_pairs(reals[i])) for i in columns]
    between = [(i, j, _kernel(fakes[i], reals[j])) for i, j in pairs]

    def squared_mmd(fake_shares: np.ndarray, real_shares: np.ndarray) -> float:
        total = sum(fake_shares[i] @ kernel @ real_shares[j] for i, j, kernel in between)
        weight = sum(fake_shares[i].sum() * real_shares[j].sum() for i, j, _ in between)
        return _mean_within(within_fakes, fake_shares) + _mean_within(within_reals, real_shares) - 2 * total / weight

    return bootstrap(squared_mmd, (len(fakes), len(reals)), seed=seed, replicates=replicates)


def _blocks(generator: np.random.Generator, number: int) -> list[np.ndarray]:
    return np.array_split(generator.permutation(number), -(-number // _BLOCK))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_of_pairs(x: np.ndarray) -> np.ndarray:
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    return kernel


def _mean_within(blocks: list[tuple[np.ndarray, np.ndarray]], shares: np.ndarray) -> float:
    total = sum(shares[i] @ kernel @ shares[i] for i, kernel in blocks)
    weight = sum(shares[i].sum() ** 2 - (shares[i] ** 2).sum() for i, _ in blocks)
    return total / weight
