"""Intervals against the theory of the mean, and the promises about replicates."""

import math

import numpy as np
import pytest

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap


def mean_of(x):
    return lambda weights: weights @ x


def test_interval_of_the_mean_is_the_normal_one():
    x = np.random.default_rng(0).normal(3, 2, 400)
    estimate = bootstrap(mean_of(x), [400], seed=1, replicates=2000)
    half = 1.96 * x.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(x.mean(), rel=1e-12)
    assert estimate.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        x = generator.exponential(1, 40)
        estimate = bootstrap(mean_of(x), [40], seed=seed, replicates=100)
        covered += estimate.low <= 1 <= estimate.high
    assert 0.87 <= covered / 200 <= 0.98


def test_the_bias_of_repetition_is_removed():
    """The maximum of a replicate is at most the maximum of all: the replicates are below it, the interval around it."""
    x = np.arange(20.0)
    estimate = bootstrap(lambda weights: x[weights > 0].max(), [20], seed=0)
    assert estimate.low < estimate.value == 19 < estimate.high


def test_weights_are_of_draws_with_repetition():
    seen = []
    bootstrap(lambda a, b: seen.append((a, b)) or 0.0, [7, 2], seed=0, replicates=50)
    np.testing.assert_allclose(seen[0][0], 1 / 7)
    np.testing.assert_allclose(seen[0][1], 1 / 2)
    assert len(seen) == 51
    for first, second in seen[1:]:
        np.testing.assert_allclose(first * 7, np.rint(first * 7), atol=1e-12)
        assert first.sum() == pytest.approx(1)
        assert np.count_nonzero(second) == 2  # never one image alone
    assert any((a == 0).any() for a, _ in seen[1:])


def test_dict_bounds_and_no_replicates():
    x = np.arange(10.0)
    both = bootstrap(lambda s: {"mean": s @ x, 2: 1 - s @ x}, [10], seed=0, bounds=(0, 4.6))
    assert set(both) == {"mean", 2}
    assert both["mean"].value == pytest.approx(4.5)
    assert both["mean"].high == 4.6
    assert both[2] == Estimate(0, 0, 0)
    alone = bootstrap(mean_of(x), [10], seed=0, replicates=0)
    assert alone.low == alone.value == alone.high == pytest.approx(4.5)


def test_same_seed_same_interval():
    x = np.random.default_rng(0).normal(size=30)
    first, again, other = (bootstrap(mean_of(x), [30], seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low
