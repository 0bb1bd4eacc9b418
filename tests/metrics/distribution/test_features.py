"""Features: shapes, batches, and what they see."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image
from medgan_jax.metrics.distribution.features import PIXELS, PYRAMID


@pytest.fixture(scope="module")
def phantoms():
    return np.stack([phantom_image(i, seed=3, image_size=64) for i in range(7)])


@pytest.mark.parametrize(("features", "length"), [(PIXELS, 16 * 16 * 3), (PYRAMID, 16 * 3 * 4)])
def test_shape_and_batches(phantoms, features, length):
    vectors = features.of(phantoms, batch_size=3)
    assert vectors.shape == (7, length)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(features.of(phantoms[::-1], batch_size=7)[::-1], vectors, atol=1e-5)
    assert features.of(phantoms[..., :1]).shape == (7, length // 3)


@pytest.mark.parametrize("size", [16, 32, 128, 256])
def test_every_size(size):
    image = phantom_image(0, seed=0, image_size=size)[None]
    assert PIXELS.of(image).shape == (1, 768)
    assert PYRAMID.of(image).shape == (1, 48 * (size.bit_length() - 3))
    assert np.all(np.isfinite(PYRAMID.of(np.zeros_like(image))))


def test_pixels_are_means(phantoms):
    expected = phantoms.reshape(7, 16, 4, 16, 4, 3).mean((2, 4)).reshape(7, -1) / 255
    np.testing.assert_allclose(PIXELS.of(phantoms), expected, atol=1e-6)


def test_the_pyramid_sees_texture_where_pixels_do_not(phantoms):
    """A checkerboard of single pixels averages away at 16 px."""
    board = np.indices((64, 64)).sum(0) % 2
    textured = np.clip(phantoms.astype(int) + 10 * (2 * board - 1)[None, :, :, None], 0, 255).astype(np.uint8)
    inside = (phantoms >= 10) & (phantoms <= 245)
    assert inside.mean() > 0.9
    assert np.abs(PIXELS.of(textured) - PIXELS.of(phantoms)).max() < 0.02
    assert np.abs(PYRAMID.of(textured) - PYRAMID.of(phantoms)).max() > 0.2
