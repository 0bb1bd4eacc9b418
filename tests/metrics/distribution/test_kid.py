"""KID against its definition, its expectation, and the coverage of its interval."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution.bootstrap import bootstrap
from medgan_jax.metrics.distribution.kid import kid


def double_loop(x, y, x_weights, y_weights):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    total = 0.0
    for rows, weights in ((x, x_weights), (y, y_weights)):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        numerator = sum(weights[i] * weights[j] * k(rows[i], rows[j]) for i, j in pairs)
        total += numerator / sum(weights[i] * weights[j] for i, j in pairs)
    pairs = [(i, j) for i in range(len(x)) for j in range(len(y))]
    numerator = sum(x_weights[i] * y_weights[j] * k(x[i], y[j]) for i, j in pairs)
    return total - 2 * numerator / sum(x_weights[i] * y_weights[j] for i, j in pairs)


def test_double_loop_with_replicates(table):
    """In a replicate, of pairs of different images."""
    x, y = table(9, 4, 0.0), table(12, 4, 0.4)
    estimate = kid(x, y, seed=3, replicates=10)
    expected = bootstrap(lambda *weights: double_loop(x, y, *weights), (9, 12), seed=3, replicates=10)
    assert estimate.value == pytest.approx(expected.value, rel=1e-10)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    alone = kid(x, y, replicates=0)
    assert alone.low == alone.value == alone.high == pytest.approx(estimate.value)


def test_other_implementations(table):
    """A double loop over PyTorch tensors, and piq 0.8's KID of one subset, of all 24 images, of the same tables."""
    x, y = table(24, 6, 0.0), table(30, 6, 0.4)
    assert kid(x, y).value == pytest.approx(0.04540082325090869, rel=1e-9)
    assert kid(x, y[:24]).value == pytest.approx(0.01520854414788797, rel=1e-9)


def test_zero_on_average_for_equal_distributions():
    generator = np.random.default_rng(0)
    values = [
        kid(generator.normal(size=(10, 6)), generator.normal(size=(15, 6)), replicates=0).value for _ in range(2000)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert error < 0.02


def test_interval_covers_the_truth():
    generator = np.random.default_rng(0)

    def draw(fakes, reals):
        return generator.normal(0.5, 1.2, (fakes, 6)), generator.normal(0, 1, (reals, 6))

    truth = kid(*draw(2000, 2000), replicates=0).value
    estimates = [kid(*draw(30, 40), seed=seed, replicates=100) for seed in range(100)]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert covered >= 0.85
    widths = [estimate.high - estimate.low for estimate in estimates]
    assert np.mean(widths) < 2 * 3.92 * np.std([estimate.value for estimate in estimates])


def test_blocks_of_large_sets():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(300, 5)), generator.normal(0.3, 1, (120, 5))
    whole, blocks = kid(x, y, replicates=50), kid(x, y, replicates=50, block_size=100)
    assert blocks.value != whole.value
    assert blocks.value == pytest.approx(whole.value, rel=0.2)
    assert whole.low < blocks.value < whole.high


def test_order_and_roles_do_not_matter(table):
    x, y = table(20, 5, 0.0), table(25, 5, 0.3)
    value = kid(x, y, replicates=0).value
    assert kid(x[::-1], y[::-1], replicates=0).value == pytest.approx(value, rel=1e-9)
    assert kid(y, x, replicates=0).value == pytest.approx(value, rel=1e-9)


def test_grows_with_shift_and_with_lost_variety():
    generator = np.random.default_rng(0)
    reals, fakes = generator.normal(size=(100, 8)), generator.normal(size=(100, 8))
    values = [kid(fakes + shift, reals, replicates=0).value for shift in (0, 0.5, 1)]
    assert values[0] < values[1] < values[2]
    assert kid(np.repeat(fakes[:5], 20, axis=0), reals, replicates=0).value > values[0] + 0.1


@pytest.mark.parametrize(
    ("fakes", "reals", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "must be"),
        (np.zeros(4), np.zeros((4, 2)), "must be"),
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 images"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "finite"),
    ],
)
def test_refuses(fakes, reals, message):
    with pytest.raises(ValueError, match=message):
        kid(fakes, reals)
