"""The sliced Wasserstein distance against its steps written out, and what must hold of it."""

import functools

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from medgan_jax.metrics.distribution.bootstrap import bootstrap
from medgan_jax.metrics.distribution.swd import sliced_wasserstein

few_directions = functools.partial(sliced_wasserstein, directions=16)
value_of = functools.partial(few_directions, replicates=0)


def images(number, size, channels=3, *, seed=0, contrast=1.0):
    """Noise of two scales, and a brightness of each image."""
    generator = np.random.default_rng(seed)
    fine = generator.normal(size=(number, size, size, channels))
    coarse = generator.normal(size=(number, size // 4, size // 4, channels)).repeat(4, axis=1).repeat(4, axis=2)
    brightness = generator.normal(size=(number, 1, 1, 1))
    return (128 + 15 * (contrast * fine + coarse + brightness)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("channels", "flat"), [(1, 0), (3, 0), (3, 1)])
def test_steps_written_out(channels, flat):
    """One scale, patches that fill the image: no choice of places is left. The last channels may be flat."""
    fakes, reals = images(20, 8, channels)[:, :7, :7], images(12, 8, channels, seed=1, contrast=2)[:, :7, :7]
    fakes, reals = fakes.copy(), reals.copy()
    fakes[..., channels - flat :] = reals[..., channels - flat :] = 7
    directions = np.random.Generator(np.random.PCG64(0)).normal(size=(8, channels, 49))
    expected = 0.0
    for direction in directions:
        unit = (direction / np.sqrt((direction**2).sum())).reshape(channels, 7, 7).transpose(1, 2, 0)
        places = [
            ((x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2)).clip(1e-9) * unit).sum(axis=(1, 2, 3))
            for x in (fakes.astype(float), reals.astype(float))
        ]
        expected += 1000 * wasserstein_distance(*places) / 8
    estimates = sliced_wasserstein(fakes, reals, directions=8)
    assert list(estimates) == [7]
    assert estimates[7].value == pytest.approx(expected, rel=1e-9)


def test_replicates_are_sets_with_repeated_images():
    """A grey set resampled by its weights is the set that holds the images so many times."""
    fakes, reals = images(8, 16, 1), images(6, 16, 1, seed=1, contrast=2)

    def repeated(*weights):
        sets = (x.repeat(np.rint(w * len(w)).astype(int), axis=0) for x, w in zip((fakes, reals), weights, strict=True))
        return value_of(*sets)[16].value

    found = few_directions(fakes, reals, seed=0, replicates=6)[16]
    expected = bootstrap(repeated, (8, 6), seed=0, replicates=6)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_interval_of_some_directions_is_shifted_to_the_value():
    x, y = images(6, 16, 1), images(7, 16, 1, seed=1, contrast=2)
    every = sliced_wasserstein(x, y, replicates=10, directions=128)[16]
    some = sliced_wasserstein(x, y, replicates=10, directions=64)[16]  # the same ones first
    assert every.value != some.value
    assert every.low - every.value == pytest.approx(some.low - some.value)
    assert every.high - every.value == pytest.approx(some.high - some.value)


def test_scales():
    def scales(size):
        return list(value_of(images(3, size, 1), images(4, size, 1, seed=1)))

    assert scales(64) == [64, 32, 16]
    assert scales(48) == [48, 24]
    assert scales(28) == [28]


@pytest.mark.parametrize("channels", [1, 3])
def test_identical_sets_in_any_order(channels):
    """Equal images have equal patches: their places depend on the pixels alone."""
    x, y = images(12, 32, channels), images(12, 32, channels, seed=1)
    for estimate in few_directions(x, x[::-1], replicates=20).values():
        assert estimate.value == pytest.approx(0, abs=1e-9)
        assert estimate.low == 0 < estimate.high
    one, other = value_of(x, y), value_of(y[::-1], x)
    for size in (32, 16):
        assert one[size].value == pytest.approx(other[size].value, rel=1e-9)


def test_finds_the_scale_that_differs():
    reals, alike, flat = images(40, 32, seed=0), images(40, 32, seed=1), images(40, 32, seed=2)
    flat[:20] = flat[:20].mean(axis=(1, 2), keepdims=True).astype(np.uint8)  # half without structure
    near, far = (few_directions(x, reals, replicates=40) for x in (alike, flat))
    assert far[32].low > near[32].high
    assert near[32].low <= near[32].value <= near[32].high


def test_blind_to_brightness_and_contrast_of_whole_sets():
    reals = images(10, 8)[:, :7, :7] // 2
    assert value_of(2 * reals + 1, reals)[7].value == pytest.approx(0, abs=1e-9)
    brighter = reals + np.uint8(60) * (np.arange(10) % 2).astype(np.uint8)[:, None, None, None]  # half of them only
    assert value_of(brighter, reals)[7].value > 10


def test_value_falls_with_more_images():
    """300 images have fewer patches each."""
    values = [value_of(images(n, 16, 1), images(n, 16, 1, seed=1))[16].value for n in (10, 40, 300)]
    assert values[0] > values[1] > values[2] > 0


def test_flat_images():
    fakes, reals = np.zeros((4, 32, 32, 3), np.uint8), np.full((5, 32, 32, 3), 9, np.uint8)
    for estimate in few_directions(fakes, reals, replicates=5).values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_seed():
    x, y = images(6, 16, 1), images(7, 16, 1, seed=1)
    first, again, other = (few_directions(x, y, seed=seed, replicates=10)[16] for seed in (0, 0, 1))
    assert first == again
    assert first.value != other.value


@pytest.mark.parametrize(
    ("fakes", "reals", "message"),
    [
        (np.zeros((3, 16, 16, 3), np.float32), np.zeros((3, 16, 16, 3), np.uint8), "uint8"),
        (np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 1), np.uint8), "one shape"),
        (np.zeros((3, 16, 20, 3), np.uint8), np.zeros((3, 16, 20, 3), np.uint8), "square"),
        (np.zeros((3, 6, 6, 3), np.uint8), np.zeros((3, 6, 6, 3), np.uint8), "7 pixels"),
        (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8), "at least 2 images"),
    ],
)
def test_refuses(fakes, reals, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(fakes, reals)
