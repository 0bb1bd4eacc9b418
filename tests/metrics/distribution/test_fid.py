"""FID against the closed form of Gaussians, its definition with full covariances, and its known bias."""

import math

import numpy as np
import pytest

from medgan_jax.metrics.distribution.bootstrap import bootstrap
from medgan_jax.metrics.distribution.fid import fid


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def by_covariances(x, y, x_counts=None, y_counts=None):
    means = [np.average(a, axis=0, weights=counts) for a, counts in ((x, x_counts), (y, y_counts))]
    first, second = (np.cov(a, rowvar=False, fweights=counts) for a, counts in ((x, x_counts), (y, y_counts)))
    cross = np.trace(root(root(first) @ second @ root(first)))
    return ((means[0] - means[1]) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross


@pytest.mark.parametrize(("fakes", "reals", "size"), [(40, 50, 6), (8, 50, 6), (12, 9, 40), (60, 6, 20)])
def test_full_covariances(fakes, reals, size):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(fakes, size)), generator.normal(0.5, 2, (reals, size))
    assert fid(x, y, replicates=0)[0].value == pytest.approx(by_covariances(x, y), rel=1e-6)


def test_replicates_are_fids_of_repeated_images():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(9, 4)), generator.normal(0.5, 2, (6, 4))

    def repeated(x_weights, y_weights):
        return by_covariances(x, y, *(np.rint(w * len(w)).astype(int) for w in (x_weights, y_weights)))

    estimate, _ = fid(x, y, seed=3, replicates=10)
    expected = bootstrap(repeated, (9, 6), seed=3, replicates=10, bounds=(0, math.inf))
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_closed_form():
    """Large sets of diagonal Gaussians."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(0, 1, (20_000, 3)), generator.normal(0, 1, (20_000, 3)) * [1, 2, 3] + [1, 0, 0.5]
    assert fid(x, y, replicates=0)[0].value == pytest.approx(1 + 0.25 + 1 + 4, rel=0.03)


def test_other_implementation(table):
    """The FID that piq 0.8 computed once, in float64, of the same tables."""
    value = fid(table(24, 6, 0.0), table(30, 6, 0.4), replicates=0)[0].value
    assert value == pytest.approx(0.49689493437590126, rel=1e-6)


@pytest.mark.parametrize(("number", "size"), [(30, 6), (12, 40)])
def test_identical_sets(number, size):
    x = np.random.default_rng(0).normal(size=(number, size))
    estimate, _ = fid(x, x[::-1])
    assert estimate.value == pytest.approx(0, abs=1e-5)
    assert estimate.low == 0
    assert estimate.high > 0.1


def test_bias_is_what_larger_sets_lose():
    generator = np.random.default_rng(0)
    pairs = [fid(generator.normal(size=(100, 6)), generator.normal(0.5, 1, (80, 6)), replicates=1) for _ in range(40)]
    values, biases = np.array([(estimate.value, bias) for estimate, bias in pairs]).T
    truth = 6 * 0.25
    true_bias = values.mean() - truth
    assert true_bias > 0.1
    assert biases.mean() == pytest.approx(true_bias, rel=0.4)
    assert abs((values - biases).mean() - truth) < 0.5 * true_bias


def test_bias_of_very_small_sets():
    generator = np.random.default_rng(0)
    assert fid(generator.normal(size=(20, 40)), generator.normal(size=(20, 40)))[1] > 1
    assert math.isnan(fid(generator.normal(size=(2, 4)), generator.normal(size=(2, 4)))[1])


def test_order_and_roles_do_not_matter(table):
    x, y = table(20, 30, 0.0), table(25, 30, 0.3)
    value = fid(x, y, replicates=0)[0].value
    assert fid(x[::-1], y[::-1], replicates=0)[0].value == pytest.approx(value, rel=1e-6)
    assert fid(y, x, replicates=0)[0].value == pytest.approx(value, rel=1e-6)


def test_grows_with_shift_noise_and_lost_variety():
    generator = np.random.default_rng(0)
    reals, fakes, noise = generator.normal(size=(3, 60, 20))
    value, shifted, noisy, collapsed = (
        fid(x, reals, replicates=0)[0].value
        for x in (fakes, fakes + 1, fakes + noise, np.repeat(fakes[:5], 12, axis=0))
    )
    assert shifted == pytest.approx(value + 20, rel=0.2)
    assert noisy > value + 1
    assert collapsed > value + 1


def test_interval_widens_with_fewer_images():
    generator = np.random.default_rng(0)
    reals, fakes = generator.normal(size=(2, 400, 6))
    wide, narrow = (fid(fakes[:n] + 0.5, reals[:n])[0] for n in (25, 400))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_no_replicates(table):
    estimate, bias = fid(table(9, 4, 0.0), table(12, 4, 0.4), replicates=0)
    assert estimate.low == estimate.value == estimate.high
    assert math.isnan(bias)
