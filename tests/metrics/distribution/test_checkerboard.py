"""The index sees a grid of its own period, and nothing in photographs without one."""

import numpy as np
import pytest

from medgan_jax.metrics.distribution.checkerboard import PERIODS, checkerboard_index


def gridded(images, period, strength=4):
    """With every `period`-th pixel of both directions brighter."""
    grid = np.zeros(images.shape[1:3])
    grid[::period, ::period] = strength * period**2 / 4
    return np.clip(images + grid[None, :, :, None], 0, 255).astype(np.uint8)


def test_reals_and_white_noise_are_at_one(phantoms):
    index = checkerboard_index(phantoms)
    assert tuple(index) == PERIODS == (2, 4, 8)
    for estimate in index.values():
        assert 0.6 < estimate.value < 1.5
        assert estimate.low <= estimate.value <= estimate.high
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 1), np.uint8)
    for estimate in checkerboard_index(noise).values():
        # The mean of a ratio to a median of 16 exponential variables averaged over 200 images.
        assert estimate.value == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("period", PERIODS)
def test_a_grid_is_seen_at_its_period(phantoms, period):
    index = checkerboard_index(gridded(phantoms, period))
    assert index[period].value > 4
    assert index[period].low > 2
    for other in PERIODS:
        if other > period:  # a grid of 4 px has the frequencies of one of 2 px, but not the other way round
            assert index[other].value < 1.5


def test_a_stronger_grid_counts_more(phantoms):
    weak, strong = (checkerboard_index(gridded(phantoms, 2, strength))[2].value for strength in (2, 4))
    assert strong > 2 * weak


def test_small_images_have_fewer_periods(phantoms):
    assert tuple(checkerboard_index(phantoms[:, :16, :16])) == (2, 4)
    assert checkerboard_index(phantoms[:, :7, :7]) == {}


def test_grey_as_colour(phantoms):
    grey = np.repeat(phantoms[..., :1], 3, -1)
    for one, three in zip(checkerboard_index(grey[..., :1]).values(), checkerboard_index(grey).values(), strict=True):
        assert one.value == pytest.approx(three.value, rel=1e-3)
