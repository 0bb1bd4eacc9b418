"""Kernel inception distance."""

import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.features import feature_sets


def kid(
    fakes: ArrayLike, reals: ArrayLike, *, seed: int = 0, replicates: int = 200, block_size: int = 2000
) -> Estimate:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018).

    arXiv:1801.01401. Not multiplied by 1000. Its mean is zero for sets of the same distribution, whatever their size,
    so half of the time it is negative.

    All pairs of images are used. The usual mean over random subsets has the same expectation and a larger variance,
    and small sets need no subsets. A set larger than `block_size` is divided at random into the smallest number of
    equal blocks; then only pairs within a block are used, and between the sets those of block 1 and 1, 2 and 2, ...

    In a replicate a pair is two different images, weighted by how often both were drawn. Pairs of an image with itself
    would bring the bias back.

    Args:
      fakes: features, (N, D), N >= 2.
      reals: features, (M, D), M >= 2.
      seed: of the blocks and the interval.
      replicates: of the bootstrap; 0 for the value alone.
      block_size: in images; bounds the memory.

    Raises:
      ValueError: shapes do not fit, there are too few images, or values are not finite.
    """
    fakes, reals = feature_sets(fakes, reals)
    generator = np.random.Generator(np.random.PCG64(seed))
    rows, columns = (
        np.array_split(generator.permutation(number), -(-number // block_size)) for number in (len(fakes), len(reals))
    )
    pairs = [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(max(len(rows), len(columns)))]
    within_fakes = [(i, _kernel(fakes[i], fakes[i], diagonal=False)) for i in rows]
    within_reals = [(i, _kernel(reals[i], reals[i], diagonal=False)) for i in columns]
    between = [(i, j, _kernel(fakes[i], reals[j])) for i, j in pairs]

    def squared_mmd(fake_weights: np.ndarray, real_weights: np.ndarray) -> float:
        total = sum(fake_weights[i] @ kernel @ real_weights[j] for i, j, kernel in between)
        weight = sum(fake_weights[i].sum() * real_weights[j].sum() for i, j, _ in between)
        return _mean_within(within_fakes, fake_weights) + _mean_within(within_reals, real_weights) - 2 * total / weight

    return bootstrap(squared_mmd, (len(fakes), len(reals)), seed=seed, replicates=replicates)


def _kernel(x: np.ndarray, y: np.ndarray, *, diagonal: bool = True) -> np.ndarray:
    kernel = (x @ y.T / x.shape[1] + 1) ** 3
    if not diagonal:
        np.fill_diagonal(kernel, 0)
    return kernel


def _mean_within(blocks: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> float:
    total = sum(weights[i] @ kernel @ weights[i] for i, kernel in blocks)
    weight = sum(weights[i].sum() ** 2 - (weights[i] ** 2).sum() for i, _ in blocks)
    return total / weight
