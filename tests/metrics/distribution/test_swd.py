"""Wasserstein distances against sorting and quantiles, the whole measure against its steps written out."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution import swd as module
from medgan_jax.metrics.distribution.swd import _area_between, sliced_wasserstein


@pytest.fixture
def few_directions(monkeypatch):
    monkeypatch.setattr(module, "_DIRECTIONS", 16)
    monkeypatch.setattr(module, "_RESAMPLED", 8)


def images(number, size, channels=3, *, seed=0, contrast=1.0):
    """Noise of two scales, and a brightness of each image."""
    generator = np.random.default_rng(seed)
    fine = generator.normal(size=(number, size, size, channels))
    coarse = generator.normal(size=(number, size // 4, size // 4, channels)).repeat(4, axis=1).repeat(4, axis=2)
    brightness = generator.normal(size=(number, 1, 1, 1))
    return (128 + 15 * (contrast * fine + coarse + brightness)).clip(0, 255).astype(np.uint8)


def test_area_is_the_mean_distance_of_sorted_points():
    x, y = np.sort(np.random.default_rng(0).normal(size=(2, 50)), axis=1)
    shares = np.full(50, 1 / 50)
    assert _area_between(x, shares, y + 0.3, shares) == pytest.approx(np.abs(x - y - 0.3).mean(), rel=1e-12)


def test_area_is_the_integral_between_quantile_functions():
    generator = np.random.default_rng(1)
    x, y = np.sort(generator.normal(size=12)), np.sort(generator.exponential(size=18))
    counts = (
        np.array([0, 3, 1, 0, 2, 1, 1, 1, 1, 0, 2, 0]),
        np.array([2, 0, 1, 1, 0, 3, 1, 1, 1, 0, 1, 1, 2, 0, 1, 1, 1, 1]),
    )
    first, second = (np.repeat(points, n) for points, n in zip((x, y), counts, strict=True))
    expected = np.abs(first.repeat(3) - second.repeat(2)).mean()  # 36 quantiles of 12 and of 18 points
    area = _area_between(x, counts[0] / 12, y, counts[1] / 18)
    assert area == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("channels", "flat"), [(1, 0), (3, 0), (3, 1)])
def test_steps_written_out(monkeypatch, channels, flat):
    """One scale, patches that fill the image: no choice of places is left. The last channels may be flat."""
    monkeypatch.setattr(module, "_DIRECTIONS", 8)
    fakes, reals = images(20, 8, channels)[:, :7, :7], images(20, 8, channels, seed=1, contrast=2)[:, :7, :7]
    fakes, reals = fakes.copy(), reals.copy()
    fakes[..., channels - flat :] = reals[..., channels - flat :] = 7
    directions = np.random.Generator(np.random.PCG64(0)).normal(size=(8, channels, 49))
    expected = 0.0
    for direction in directions:
        unit = (direction / np.sqrt((direction**2).sum())).reshape(channels, 7, 7).transpose(1, 2, 0)
        places = [
            np.sort(((x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2)).clip(1e-9) * unit).sum(axis=(1, 2, 3)))
            for x in (fakes.astype(float), reals.astype(float))
        ]
        expected += 1000 * np.abs(places[0] - places[1]).mean() / 8
    estimates = sliced_wasserstein(fakes, reals)
    assert list(estimates) == [7]
    assert estimates[7].value == pytest.approx(expected, rel=1e-9)


def test_replicates_are_sets_with_repeated_images(monkeypatch, few_directions):
    """A grey set resampled by its shares is the set that holds the images so many times."""
    fakes, reals = images(8, 16, 1), images(6, 16, 1, seed=1, contrast=2)
    counts = np.array([0, 2, 1, 1, 0, 3, 1, 0]), np.array([2, 0, 1, 1, 0, 2])

    def resampled(statistic, sizes, **_):
        value = statistic(counts[0] / 8, counts[1] / 6)
        return module.Estimate(statistic(np.full(8, 1 / 8), np.full(6, 1 / 6)), value, value)

    repeated = sliced_wasserstein(fakes.repeat(counts[0], axis=0), reals.repeat(counts[1], axis=0), replicates=0)
    monkeypatch.setattr(module, "bootstrap", resampled)
    monkeypatch.setattr(module, "_RESAMPLED", 16)  # all of them
    assert sliced_wasserstein(fakes, reals)[16].low == pytest.approx(repeated[16].value, rel=1e-9)


def test_places_differ_by_image_and_not_by_its_copy():
    """A ramp tells where a patch lies."""
    ramp = (np.arange(16) + 16 * np.arange(16)[:, None]).astype(np.uint8)[..., None]
    marked = ramp.copy()
    marked[0, 0] = 1
    (patches,) = module._patches(np.stack([ramp, marked, ramp]), [16], seed=0)
    corners = patches[..., 3, 3].squeeze(2).astype(int)  # of which the mark is none
    np.testing.assert_array_equal(corners[0], corners[2])
    assert (corners[0] != corners[1]).mean() > 0.9
    for along in (corners % 16, corners // 16):
        assert set(along.flat) == set(range(3, 13))
    assert (corners % 16 != corners // 16).mean() > 0.8


def test_interval_of_some_directions_is_moved_to_the_value(monkeypatch, few_directions):
    def wide(statistic, sizes, **_):
        value = statistic(*(np.full(size, 1 / size) for size in sizes))
        return module.Estimate(value, value - 1, value + 2)

    x, y = images(6, 16, 1), images(7, 16, 1, seed=1, contrast=2)
    expected = sliced_wasserstein(x, y, replicates=0)[16].value
    monkeypatch.setattr(module, "bootstrap", wide)
    estimate = sliced_wasserstein(x, y)[16]
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((expected, expected - 1, expected + 2))


def test_scales(few_directions):
    def scales(size):
        return list(sliced_wasserstein(images(3, size, 1), images(4, size, 1, seed=1), replicates=0))

    assert scales(64) == [64, 32, 16]
    assert scales(48) == [48, 24]
    assert scales(16) == [16]
    assert scales(28) == [28]


@pytest.mark.parametrize("channels", [1, 3])
def test_identical_sets_in_any_order(few_directions, channels):
    x, y = images(12, 32, channels), images(12, 32, channels, seed=1)
    for estimate in sliced_wasserstein(x, x[::-1], replicates=20).values():
        assert estimate.value == pytest.approx(0, abs=1e-9)
        assert estimate.low == 0 < estimate.high
    one, other = (sliced_wasserstein(a, b, replicates=0) for a, b in ((x, y), (y[::-1], x)))
    for size in (32, 16):
        assert one[size].value == pytest.approx(other[size].value, rel=1e-9)


def test_finds_the_scale_that_differs(few_directions):
    reals, alike, flat = images(40, 32, seed=0), images(40, 32, seed=1), images(40, 32, seed=2)
    flat[:20] = flat[:20].mean(axis=(1, 2), keepdims=True).astype(np.uint8)  # half without structure
    near, far = (sliced_wasserstein(x, reals, replicates=40) for x in (alike, flat))
    assert far[32].low > near[32].high
    assert near[32].low <= near[32].value <= near[32].high


def test_blind_to_brightness_and_contrast_of_whole_sets(few_directions):
    reals = images(10, 8)[:, :7, :7] // 2
    assert sliced_wasserstein(2 * reals + 1, reals, replicates=0)[7].value == pytest.approx(0, abs=1e-9)
    brighter = reals + np.uint8(60) * (np.arange(10) % 2).astype(np.uint8)[:, None, None, None]  # half of them only
    assert sliced_wasserstein(brighter, reals, replicates=0)[7].value > 10


def test_value_falls_with_more_images(few_directions):
    values = [
        sliced_wasserstein(images(n, 16, 1), images(n, 16, 1, seed=1), replicates=0)[16].value for n in (10, 40, 160)
    ]
    assert values[0] > values[1] > values[2] > 0


def test_flat_images(few_directions):
    fakes, reals = np.zeros((4, 32, 32, 3), np.uint8), np.full((5, 32, 32, 3), 9, np.uint8)
    for estimate in sliced_wasserstein(fakes, reals, replicates=5).values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_many_images_have_fewer_patches_each(monkeypatch, few_directions):
    monkeypatch.setattr(module, "_PATCHES_PER_SET", 100)
    monkeypatch.setattr(module, "_CHUNK", 16)
    shapes = [x.shape for x in module._patches(images(30, 32), [32, 16], seed=0)]
    assert shapes == [(30, 3, 3, 7, 7), (30, 3, 3, 7, 7)]
    assert sliced_wasserstein(images(130, 16), images(4, 16), replicates=0)[16].value > 0


def test_seed(few_directions):
    x, y = images(6, 16, 1), images(7, 16, 1, seed=1)
    first, again, other = (sliced_wasserstein(x, y, seed=seed, replicates=10)[16] for seed in (0, 0, 1))
    assert first == again
    assert first.value != other.value


@pytest.mark.parametrize(
    ("fakes", "reals", "message"),
    [
        (np.zeros((3, 16, 16, 3), np.float32), np.zeros((3, 16, 16, 3), np.uint8), "uint8"),
        (np.zeros((3, 16, 16), np.uint8), np.zeros((3, 16, 16), np.uint8), "uint8"),
        (np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 1), np.uint8), "one shape"),
        (np.zeros((3, 16, 20, 3), np.uint8), np.zeros((3, 16, 20, 3), np.uint8), "square"),
        (np.zeros((3, 6, 6, 3), np.uint8), np.zeros((3, 6, 6, 3), np.uint8), "7 pixels"),
        (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8), "at least 2 images"),
    ],
)
def test_refuses(fakes, reals, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(fakes, reals)
